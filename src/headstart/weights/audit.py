"""Initialisation audit before step 0: the origin, training and normalisation of every tensor, against the recipe.

It examines the model itself and the tensors that were really loaded, not the settings. Its findings are errors, because
an arm that does not start as declared voids the comparison.
"""

from torch import nn

from headstart.batch import InputSpec
from headstart.weights.audit_table import audit_rows, has_statistics, is_fixed
from headstart.weights.audits.record import Audit
from headstart.weights.audits.values import listed, unlike_file, untrained_file
from headstart.weights.files import tensor_digest
from headstart.weights.freeze import frozen_modules
from headstart.weights.input import input_differences
from headstart.weights.load import expected_names, named_tensors, prefix_of
from headstart.weights.mismatch import LoadReport

STARTS = ("random", "backbone", "detector", "branch")


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """{tensor name: digest of its values}, to be compared with those right after construction."""
    return {name: tensor_digest(value) for name, value in named_tensors(model).items()}


def audit(
    model: nn.Module,
    *,
    start: str,
    freeze: str,
    input: InputSpec,
    report: LoadReport | None = None,
    initial: dict[str, str] | None = None,
    other_seed: dict[str, str] | None = None,
) -> Audit:
    """Audit a model that is ready for step 0: built, loaded, frozen, in its training mode (`set_train_mode`).

    start, freeze: as declared by the recipe; input: its normalisation of images; report: of `load_weights`.
    initial: `tensor_digests` right after construction; other_seed: those of the same model built with another seed,
    which find weights that a constructor loads by itself. What is not given is not checked.
    """
    assert start in STARTS
    loaded = {} if report is None else report.loaded
    now = tensor_digests(model) if initial or loaded else {}
    errors = [
        *_loaded_into_random(start, report),
        *_changed_since(now, start, loaded, initial or {}),
        *_unseeded(model, start, loaded, initial or {}, other_seed or {}),
        *_not_loaded(model, start, report),
        *(unlike_file(report, now, initial or {}) if report is not None else ()),
        *(untrained_file(report, named_tensors(model), now) if report is not None else ()),
        *_frozen_random(model, loaded),
        *_frozen_otherwise(model, freeze),
        *_norms(model),
        *(_input(report, input) if start != "random" and report is not None else ()),
    ]
    return Audit(
        start=start,
        freeze=freeze,
        file=None if report is None else report.path,
        hash=None if report is None else report.hash,
        rows=tuple(audit_rows(model, report)),
        errors=tuple(errors),
        notes=() if report is None else report.notes,
        left_out=() if report is None else report.left_out,
        new=() if report is None else report.missing,
        reshaped={} if report is None else report.mismatched,
    )


def _loaded_into_random(start: str, report: LoadReport | None) -> list[str]:
    if start != "random" or report is None or not report.loaded:
        return []
    return [
        f"start.kind is random, but {listed(report.loaded)} were loaded from {report.path}; "
        "set start.weights to null, or declare start.kind backbone or detector"
    ]


def _changed_since(now: dict[str, str], start: str, loaded: dict[str, str], initial: dict[str, str]) -> list[str]:
    changed = [name for name in now if initial and now[name] != initial.get(name) and name not in loaded]
    if not changed:
        return []
    return [
        f"start.kind is {start}, but {listed(changed)} changed after construction without being loaded from "
        "start.weights; remove what sets them, or declare it as start.kind and start.weights"
    ]


def _unseeded(
    model: nn.Module, start: str, loaded: dict[str, str], initial: dict[str, str], other_seed: dict[str, str]
) -> list[str]:
    """Weights (two or more dimensions, not constant) that did not come from the seed, and were not loaded either."""
    prefix = prefix_of(model)
    names = [
        name
        for name, value in ((prefix + name, parameter) for name, parameter in model.named_parameters())
        if name not in loaded
        and name in other_seed
        and initial.get(name) == other_seed[name]
        and value.dim() > 1
        and bool((value != value.flatten()[0]).any())
    ]
    if not names:
        return []
    return [
        f"start.kind is {start}, but {listed(names)} leave the constructor the same for every seed; "
        "build the backbone without pre-trained weights (pretrained=False) and name them in start.weights"
    ]


def _not_loaded(model: nn.Module, start: str, report: LoadReport | None) -> list[str]:
    if start in ("random", "branch"):  # a branch lists what it does not take over
        return []
    if report is None:
        return [f"start.kind is {start}, but nothing was loaded; give start.weights, or set start.kind to random"]
    missing = [name for name in expected_names(model, start) if name not in report.loaded and name not in report.reset]
    if not missing:
        return []
    return [
        f"start.kind is {start}, but {listed(missing)} did not come from {report.path} and are still random; "
        "use weights of this very model (depth, width, norm), or change model to fit them"
    ]


def _frozen_random(model: nn.Module, loaded: dict[str, str]) -> list[str]:
    prefix = prefix_of(model)
    names = [prefix + name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    random = [name for name in names if name not in loaded]
    if not random:
        return []
    return [f"{listed(random)} are random and frozen, so they will never be learnt; set start.freeze to none"]


def _frozen_otherwise(model: nn.Module, policy: str) -> list[str]:
    """Parameters that train or not against `start.freeze`."""
    meant = {id(parameter) for module in frozen_modules(model, policy) for parameter in module.parameters()}
    prefix, errors = prefix_of(model), []
    parameters = [(prefix + name, parameter) for name, parameter in model.named_parameters()]
    frozen = [name for name, parameter in parameters if not parameter.requires_grad and id(parameter) not in meant]
    training = [name for name, parameter in parameters if parameter.requires_grad and id(parameter) in meant]
    if frozen:
        errors.append(f"start.freeze is {policy}, but {listed(frozen)} are frozen too; let them train, or declare it")
    if training:
        errors.append(
            f"start.freeze is {policy}, but {listed(training)} train; apply the policy (freeze), or declare another"
        )
    return errors


def _norms(model: nn.Module) -> list[str]:
    prefix = prefix_of(model)
    norms = {prefix + name: module for name, module in model.named_modules() if has_statistics(module)}
    identity = [name for name, module in norms.items() if is_fixed(module) and is_identity(module)]
    moving = [name for name, module in norms.items() if not is_fixed(module) and is_frozen(module)]
    errors = []
    if identity:
        in_backbone = any(name.startswith("backbone.") for name in identity)
        advice = "set model.norm to group or sync_batch and start.freeze to none, or load statistics"
        if not in_backbone:  # the weights of a classifier have none for these
            advice = "set model.pyramid_norm and the norm of every head to false, or model.norm to group"
        errors.append(
            f"{listed(identity, 'norm')} are frozen with identity statistics (mean 0, variance 1), which is no "
            f"normalisation at all; {advice}"
        )
    if moving:
        errors.append(
            f"{listed(moving, 'norm')} are frozen but their statistics still follow each batch; keep them in eval mode "
            "(set_train_mode), or set model.norm to frozen_batch"
        )
    return errors


def _input(report: LoadReport, input: InputSpec) -> list[str]:
    own = report.source_input
    if own is None:
        return [
            f"{report.path} does not say how its images were normalised; convert it with its input stated: "
            f"headstart weights convert {report.path} OUT.safetensors --mean … --std … --order …"
        ]
    return [
        f"{difference}: the normalisation that the weights of {report.path} were trained with"
        for difference in input_differences(input, own)
    ]


def is_frozen(module: nn.Module) -> bool:
    """True if a module has parameters of its own and none of them trains."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def is_identity(module: nn.Module) -> bool:
    """True if the statistics of a norm are those of its constructor: mean 0, variance 1."""
    return bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all())
