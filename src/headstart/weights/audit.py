"""Initialisation audit before step 0: the origin, training and normalisation of every tensor, against the recipe.

It examines the model itself and the tensors that were really loaded, not the settings. Its findings are errors, because
an arm that does not start as declared voids the comparison.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from headstart.batch import InputSpec
from headstart.weights.audits.record import Audit, AuditRow
from headstart.weights.audits.values import is_constant, is_untrained, model_rows, odd_norms, wrong
from headstart.weights.files import tensor_digest
from headstart.weights.freeze import backbone_of, frozen_modules
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
    given = report or LoadReport("", "", "", "", {})
    now, initial = tensor_digests(model) if initial or given.loaded else {}, initial or {}
    origins = _origins(model, start, report, now, initial, other_seed or {})
    errors = [
        *(f"start.kind is {start}, but {error}" for error in origins),
        *_file(given, named_tensors(model), now, initial),
        *_frozen(model, freeze, given.loaded),
        *_norms(model),
        *(_input(report, input) if start != "random" and report is not None else ()),
    ]
    return Audit(
        start=start,
        freeze=freeze,
        file=given.path or None,
        hash=given.hash or None,
        rows=_rows(model, given),
        errors=tuple(errors),
        notes=given.notes,
        left_out=given.left_out,
        new=given.missing,
        reshaped=given.mismatched,
    )


def _origins(
    model: nn.Module,
    start: str,
    report: LoadReport | None,
    now: Mapping[str, str],
    initial: Mapping[str, str],
    other_seed: Mapping[str, str],
) -> list[str]:
    """Tensors that do not come from where the declared start takes them."""
    loaded, path, prefix = report.loaded if report else {}, report.path if report else "", prefix_of(model)
    changed = [name for name in now if initial and now[name] != initial.get(name) and name not in loaded]
    # Weights (two or more dimensions, not constant) that did not come from the seed, and were not loaded either.
    unseeded = [
        name
        for name, value in ((prefix + name, parameter) for name, parameter in model.named_parameters())
        if name not in loaded and name in other_seed and initial.get(name) == other_seed[name]
        if value.dim() > 1 and not is_constant(value)
    ]
    errors = [
        *wrong(
            loaded if start == "random" else (),
            f"were loaded from {path}; set start.weights to null, or declare start.kind backbone or detector",
        ),
        *wrong(
            changed,
            "changed after construction without being loaded from start.weights; remove what sets them, or declare it "
            "as start.kind and start.weights",
        ),
        *wrong(
            unseeded,
            "leave the constructor the same for every seed; build the backbone without pre-trained weights "
            "(pretrained=False) and name them in start.weights",
        ),
    ]
    if start in ("random", "branch"):  # a branch lists what it does not take over
        return errors
    if report is None:
        return [*errors, "nothing was loaded; give start.weights, or set start.kind to random"]
    missing = [name for name in expected_names(model, start) if name not in loaded and name not in report.reset]
    return errors + wrong(
        missing,
        f"did not come from {path} and are still random; use weights of this very model (depth, width, norm), or "
        "change model to fit them",
    )


def _file(
    report: LoadReport, own: Mapping[str, Tensor], now: Mapping[str, str], initial: Mapping[str, str]
) -> list[str]:
    """Tensors that count as loaded and do not have the file's values, and a file that was never trained.

    now, initial: digests of the model's tensors `own`, as they are and right after construction.
    """
    others = [name for name, digest in report.digests.items() if now[name] != digest]
    fresh = [name for name in others if now[name] == initial.get(name)]
    counted = f"count as loaded from {report.path}, but"
    errors = [
        *wrong(fresh, f"{counted} still have their initial values; let nothing initialise the model after loading"),
        *wrong(
            [name for name in others if name not in fresh],
            f"{counted} differ from it; let nothing change them between loading and step 0",
        ),
    ]
    if is_untrained(own[name] for name in report.digests if name not in others):
        errors.append(
            f"{report.path} holds a network that was never trained: its scales, shifts and statistics are all 0 or 1; "
            "start from trained weights, or set start.kind to random"
        )
    return errors


def _frozen(model: nn.Module, policy: str, loaded: Mapping[str, str]) -> list[str]:
    """Frozen parameters that are random, and those that train or not against `start.freeze`."""
    meant = {id(parameter) for module in frozen_modules(model, policy) for parameter in module.parameters()}
    prefix = prefix_of(model)
    frozen = {prefix + name: id(value) for name, value in model.named_parameters() if not value.requires_grad}
    training = {prefix + name: id(value) for name, value in model.named_parameters() if value.requires_grad}
    against = (
        *wrong(
            [name for name, own in frozen.items() if own not in meant],
            "are frozen too; let them train, or declare it",
        ),
        *wrong(
            [name for name, own in training.items() if own in meant],
            "train; apply the policy (freeze), or declare another",
        ),
    )
    return [
        *wrong(
            [name for name in frozen if name not in loaded],
            "are random and frozen, so they will never be learnt; set start.freeze to none",
        ),
        *(f"start.freeze is {policy}, but {error}" for error in against),
    ]


def _norms(model: nn.Module) -> list[str]:
    identity, moving = odd_norms(model, prefix_of(model))
    advice = "set model.norm to group or sync_batch and start.freeze to none, or load statistics"
    if not any(name.startswith("backbone.") for name in identity):  # the weights of a classifier have none for these
        advice = "set model.pyramid_norm and the norm of every head to false, or model.norm to group"
    return [
        *wrong(
            identity,
            "are frozen with identity statistics (mean 0, variance 1), which is no normalisation at all; " + advice,
            "norm",
        ),
        *wrong(
            moving,
            "are frozen but their statistics still follow each batch; keep them in eval mode (set_train_mode), or set "
            "model.norm to frozen_batch",
            "norm",
        ),
    ]


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


def _rows(model: nn.Module, report: LoadReport) -> tuple[AuditRow, ...]:
    """One row a part of the model, from the input up: the backbone's parts, then the model's own names."""
    prefix, backbone = prefix_of(model), backbone_of(model)
    parts: dict[str, str] = {}
    if backbone.parts()["stem"]:  # timm's has none of its own
        layers = {id(m): part for part, own in backbone.parts().items() for module in own for m in module.modules()}
        parts = {f"backbone.{name}": layers[id(m)] for name, m in backbone.named_modules() if id(m) in layers}

    def part_of(name: str) -> str:
        module = name.rpartition(".")[0]
        return parts.get(module, module.partition(".")[0])

    initialisers = dict.fromkeys([*parts.values(), "backbone"], backbone.initialiser)
    if backbone is not model:
        initialisers |= model.initialisers()
    return model_rows(
        model,
        named_tensors(model),
        own_name=lambda name: prefix + name,
        part_of=part_of,
        source=lambda part, names: _source(initialisers[part], names, report),
    )


def _source(initialiser: str, names: list[str], report: LoadReport) -> str:
    loaded = [name for name in names if name in report.loaded]
    random = f"random ({initialiser})"
    if not loaded:
        return random
    # Every seed and schedule has another parent; which one, the audit says above the rows.
    file = "carried from its parent" if report.scope == "branch" else f"{report.path} (sha256 {report.hash[:12]})"
    adapted = "".join(f"; {name}: {how}" for name, how in report.adapted.items() if name in names)
    if len(loaded) < len(names):
        file = f"{file}, {len(loaded)} of {len(names)}; the others {random}"
    return file + adapted
