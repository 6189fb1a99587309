"""Report of loading weights, and the error where they do not fit."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from headstart.batch import InputSpec


@dataclass(frozen=True)
class LoadReport:
    """Report of one loading, tensor by tensor.

    loaded {our name: name in the file}; missing: expected, not in the file; unexpected: in the file, not in the model;
    mismatched {our name: (shape in the file, shape in the model)}; left_out: of no use here, or outside the scope
    (names in the file); reset: class predictors that keep their initial values, because the number of classes differs.
    adapted {our name: description} by `start.stem`.
    `source_input` is how images must be normalised for these weights as they now are; None where the file does not say.
    digests {our name: digest of the values to be loaded}, for the audit; empty for a branch.
    """

    path: str
    hash: str
    layout: str
    scope: str
    loaded: dict[str, str]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_input: InputSpec | None = None
    digests: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)


def strict_error(report: LoadReport, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """One line on why weights do not fit: what to change where the reason is plain, else counts and first names.

    own: the model's tensors; tensors: the file's, under our names.
    """
    reason = (
        _net_reason(report, own)
        or _norm_reason(report, own)
        or _depth_reason(own, tensors)
        or _channels_reason(report)
        or _part_reason(report, own, tensors)
    )
    return f"{report.path}: {reason or _counts(report)}"


def _net_reason(report: LoadReport, own: dict[str, Tensor]) -> str:
    if report.layout != "EfficientNet-PyTorch" or "backbone.body.conv_stem.weight" in own:
        return ""
    return "is an EfficientNet; set model.backbone to {kind: timm, name: tf_efficientnet_…} and model.norm to batch"


def _norm_reason(report: LoadReport, own: dict[str, Tensor]) -> str:
    statistics = re.compile(r".+[._](running_mean|running_var|bn_rm|bn_riv)")
    if report.missing and all(statistics.fullmatch(name) for name in report.missing):
        if report.layout == "Detectron" and any("bn_s" in name for name in report.loaded.values()):
            return "its BatchNorm is folded into scale and shift, for frozen norms only; set model.norm to frozen_batch"
        return "has no BatchNorm statistics, which the model expects; set model.norm to that of the weights (group)"
    with_statistics = [name for name in report.unexpected if statistics.fullmatch(name)]
    if with_statistics and not any(statistics.fullmatch(name) for name in own):
        return (
            f"was trained with BatchNorm ({with_statistics[0]}), which this model does not have; set model.norm to "
            "batch, sync_batch or frozen_batch, or use weights trained with GroupNorm"
        )
    return ""


def _depth_reason(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    theirs, ours = (block_counts(names) for names in (tensors, own))
    if not theirs or not ours or theirs == ours:
        return ""
    return f"is a network with {theirs} blocks a stage, the model has {ours}; set model.backbone.depth to match"


def block_counts(names: Iterable[str]) -> list[int]:
    """Numbers of blocks in the four stages of a ResNet, by our names; empty for another net."""
    blocks = {match[0] for match in (re.match(r"backbone\.layer(\d)\.\d+", name) for name in names) if match}
    counts = [sum(block.startswith(f"backbone.layer{stage}.") for block in blocks) for stage in range(1, 5)]
    return counts if any(counts) else []


def _channels_reason(report: LoadReport) -> str:
    """A backbone's convolution that differs from RGB weights in nothing but the channels of its input."""
    for name, (theirs, ours) in report.mismatched.items():
        if name.startswith("backbone.") and len(ours) == 4 and theirs == (ours[0], 3, *ours[2:]):
            return f"{name} takes 3 channels, the model's {ours[1]}; set start.stem to mean or random"
    return ""


def _part_reason(report: LoadReport, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    has_backbone_only = all(name.startswith("backbone.") for name in tensors)
    lacks_backbone = any(name.startswith("backbone.") for name in report.missing)
    if report.scope == "detector" and tensors and has_backbone_only and not lacks_backbone:
        return "holds a backbone only, not a detector; set start.kind to backbone"
    theirs, ours = (any(name.startswith("cascade.") for name in names) for names in (tensors, own))
    if theirs and not ours:
        return "holds a cascade, which the model is not; set model.cascade.enabled to true"
    if ours and not theirs and report.scope == "detector":
        return "holds a detector without the stages of a cascade; set model.cascade.enabled to false"
    return ""


def _counts(report: LoadReport) -> str:
    expected = len(report.loaded) + len(report.missing) + len(report.mismatched)
    parts = [f"only {len(report.loaded)} of the {expected} tensors of the {report.scope} could be loaded"]
    if report.missing:
        parts.append(f"{len(report.missing)} are missing ({_first(report.missing)})")
    if report.mismatched:
        name, (theirs, ours) = next(iter(report.mismatched.items()))
        parts.append(f"{len(report.mismatched)} have another shape ({name}: {list(theirs)}, expected {list(ours)})")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} have no place in the model ({_first(report.unexpected)})")
    return "; ".join(parts)


def _first(names: tuple[str, ...], num: int = 3) -> str:
    return ", ".join(names[:num]) + (", …" if len(names) > num else "")


def refuse_other_stride(
    path: str, layout: str, found: dict[str, str], tensors: dict[str, Tensor], source: InputSpec | None
) -> None:
    """Refuse MSRA's ResNets and detectors trained from them: they stride on a block's first 1x1, ours on the 3x3.

    found {our name: name in the file}; tensors by our names; source is the file's own input.
    Every shape agrees, so nothing else would notice. They are recognised as the only case of: a Detectron or
    Detectron2 file with bottlenecks without groups, BatchNorm (folded or not), and no deviation in its `source` input
    (detectron2's catalogue: "MSRA models have STRIDE_IN_1X1=True. False otherwise"; its models that begin with
    torchvision's weights divide by deviations).
    """
    first, second = (tensors.get(f"backbone.layer2.0.conv{index}.weight") for index in (1, 2))
    if layout not in ("Detectron", "Detectron2") or first is None or source is None:
        return
    folded = any(name.endswith("bn_s") for name in found.values())
    has_batch_norm = folded or any(re.fullmatch(r"backbone\..+\.running_mean", name) for name in tensors)
    is_plain_bottleneck = first.shape[-1] == 1 and second.shape[1] == first.shape[0]
    if has_batch_norm and is_plain_bottleneck and set(source.std) == {1.0}:
        raise ValueError(
            f"{path}: an MSRA ResNet, whose blocks stride on the 1x1 convolution; this backbone strides on the "
            "3x3 and would compute something else; use torchvision's weights, or Detectron's GN ones"
        )
