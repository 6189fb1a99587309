"""Rows of the initialisation audit, one a part of the model."""

from torch import nn

from headstart.model.norm import FrozenBatchNorm, GroupNorm, SyncBatchNorm
from headstart.weights.audits.record import AuditRow
from headstart.weights.freeze import backbone_of
from headstart.weights.load import named_tensors, prefix_of
from headstart.weights.mismatch import LoadReport


def audit_rows(model: nn.Module, report: LoadReport | None) -> list[AuditRow]:
    """One row a part of the model, from the input up."""
    prefix, parts = prefix_of(model), part_of_modules(model)
    groups: dict[str, list[str]] = {}
    tensors = named_tensors(model)
    for name in tensors:
        groups.setdefault(group_of(name.rpartition(".")[0], parts), []).append(name)
    trains = {prefix + name: parameter.requires_grad for name, parameter in model.named_parameters()}
    norms: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        kind = norm_kind(module)
        if kind:
            norms.setdefault(group_of(prefix + name, parts), []).append(kind)
    initialisers = dict.fromkeys([*parts.values(), "backbone"], backbone_of(model).initialiser)
    if backbone_of(model) is not model:
        initialisers |= model.initialisers()
    return [
        AuditRow(
            group=group,
            source=_source(initialisers[group], names, report),
            num_tensors=len(names),
            num_params=sum(tensors[name].numel() for name in names),
            training=training_text([trains[name] for name in names if name in trains]),
            norm=", ".join(dict.fromkeys(norms.get(group, ["none"]))),
        )
        for group, names in groups.items()
    ]


def part_of_modules(model: nn.Module) -> dict[str, str]:
    """{module of the backbone: stem, stage1 ...}; empty for a backbone without a stem of its own, as timm's."""
    backbone = backbone_of(model)
    if not backbone.parts()["stem"]:
        return {}
    parts = {
        id(layer): part
        for part, modules in backbone.parts().items()
        for module in modules
        for layer in module.modules()
    }
    return {f"backbone.{name}": parts[id(module)] for name, module in backbone.named_modules() if id(module) in parts}


def group_of(module: str, parts: dict[str, str]) -> str:
    """The part of the model that a module belongs to: the backbone's parts, then the model's own names."""
    return parts.get(module, module.partition(".")[0])


def _source(initialiser: str, names: list[str], report: LoadReport | None) -> str:
    loaded = [] if report is None else [name for name in names if name in report.loaded]
    random = f"random ({initialiser})"
    if not loaded:
        return random
    # Every seed and schedule has another parent; which one, the audit says above the rows.
    file = "carried from its parent" if report.scope == "branch" else f"{report.path} (sha256 {report.hash[:12]})"
    adapted = "".join(f"; {name}: {how}" for name, how in report.adapted.items() if name in names)
    if len(loaded) < len(names):
        file = f"{file}, {len(loaded)} of {len(names)}; the others {random}"
    return file + adapted


def training_text(flags: list[bool]) -> str:
    """The share of a part's parameters that train, in words."""
    if not flags or not any(flags):
        return "frozen"
    return "trains" if all(flags) else f"{flags.count(False)} of {len(flags)} frozen"


def norm_kind(module: nn.Module) -> str:
    """Kind and mode of a normalisation layer; "" for any other module."""
    package = type(module).__module__.partition(".")[0]
    if isinstance(module, nn.GroupNorm):
        own = isinstance(module, GroupNorm)
        return f"group ({module.num_groups})" if own else f"group ({module.num_groups}, {package})"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if not has_statistics(module):
        return ""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "frozen_batch" if isinstance(module, FrozenBatchNorm) else f"frozen_batch ({package})"
    kind = "sync_batch" if isinstance(module, SyncBatchNorm | nn.SyncBatchNorm) else "batch"
    return f"{kind}, {'fixed statistics' if is_fixed(module) else 'live'}"


def has_statistics(module: nn.Module) -> bool:
    """True if a module is a norm with stored statistics: a BatchNorm of any kind and project."""
    return {"running_mean", "running_var"} <= {name for name, value in module.named_buffers(recurse=False)}


def is_fixed(module: nn.Module) -> bool:
    """True if a norm with statistics uses the stored ones: every frozen kind, and BatchNorm in eval mode."""
    return not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.training
