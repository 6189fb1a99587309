"""Load weights into a model with a report on every tensor; convert other projects' files.

`load_weights` is strict: a tensor that the scope expects and does not get, or one that the file has and the model does
not know, is an error. What is left out on purpose is listed. Names are those of a Detector or Classifier; a bare
backbone is treated as one that has nothing else, so that its tensors too are "backbone.…".
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.batch import InputSpec
from headstart.files import replacing
from headstart.model.backbones.vgg import Vgg
from headstart.model.norm import EPSILON, FrozenBatchNorm
from headstart.weights.files import COUNTER, WeightFile, read_weights, tensor_digest, write_safetensors
from headstart.weights.freeze import backbone_of
from headstart.weights.input import adapt_stem, convert_input, input_text
from headstart.weights.mismatch import LoadReport, refuse_other_stride, strict_error
from headstart.weights.names import Names, input_of, layout_of, our_names, to_our_rows
from headstart.weights.public import locate
from headstart.weights.timm_names import holds_net, match_timm

SCOPES = ("backbone", "detector")
FIRST_CONVS = ("backbone.conv1.weight", "backbone.features.0.weight")  # of a ResNet, of a VGG
# First digits of the sha256 of torchvision's COCO_V1 detectors, which it runs with a BatchNorm epsilon of 0
# (`overwrite_eps` in its constructors): Mask R-CNN, Faster R-CNN and Keypoint R-CNN R50-FPN.
WITHOUT_EPSILON = ("bf2d0c1e", "258fb6c6", "fc266e95")


def prefix_of(model: nn.Module) -> str:
    """Prefix that the names of `model` lack: "backbone." for a bare backbone, else ""."""
    return "" if backbone_of(model) is not model else "backbone."


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, counters left out; a bare backbone's get the prefix they have in a model."""
    prefix = prefix_of(model)
    return {prefix + name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER)}


def expected_names(model: nn.Module, scope: str) -> tuple[str, ...]:
    """The tensors that weights of a scope should bring: the backbone's for "backbone", all for "detector".

    A VGG's backbone includes the two fully connected layers of its box head.
    """
    if scope not in SCOPES:
        raise ValueError(f"start.kind: weights cannot be loaded as {scope!r}, expected one of {', '.join(SCOPES)}")
    head = getattr(model, "box_head", None)
    # fc6 and fc7 of a VGG start from the classifier's too (Fast R-CNN).
    has_vgg_head = isinstance(backbone_of(model), Vgg) and head is not None and not head.convs and len(head.fcs) == 2
    parts = ("backbone.", "box_head.fcs.") if has_vgg_head else ("backbone.",)
    return tuple(name for name in named_tensors(model) if scope == "detector" or name.startswith(parts))


def open_weights(name: str | Path) -> WeightFile:
    """Read weights by the name that a recipe gives: a file, or `package:NAME` of an installed package.

    ValueError in one line: as `locate` and `read_weights`.
    """
    path = locate(name)
    return replace(read_weights(path), path=str(name))


def load_weights(
    model: nn.Module,
    file: WeightFile,
    *,
    scope: str,
    input: InputSpec | None = None,
    strict: bool = True,
    stem: str | None = None,
) -> LoadReport:
    """Copy a file's tensors into a detector, a classifier or a bare backbone, and report on each.

    `input` is how this model's images will be normalised: where the source differs in channel order or deviation, the
    first convolution is converted (exactly, borders included); a different mean cannot be, and is left to the audit.
    stem: "mean" or "random" adapts RGB weights to another number of channels, which `input` normalises (`adapt_stem`).
    A detector of another number of classes keeps its initial class predictors. ValueError, before anything is copied,
    for tensors that are missing, unknown or of another shape; with strict=False those that fit are copied, and the
    report lists the others.
    """
    own, layout = named_tensors(model), layout_of(file)
    # Take the layout of timm where the file holds the tensors of the model's own timm net, whatever its names resemble.
    if _is_timm(model) and layout not in ("headstart", "EfficientNet-PyTorch") and holds_net(file.tensors, own):
        layout = "timm"
    source = input_of(file, layout)
    if source is None and layout in ("timm", "EfficientNet-PyTorch") and _is_timm(model):
        source = backbone_of(model).input  # as timm states it, where the file does not
    tensors, report = _account(model, file, layout, scope, stem, source)
    refuse_other_stride(file.path, layout, report.loaded, tensors, source)
    if (strict and (report.missing or report.unexpected or report.mismatched)) or not report.loaded:
        raise ValueError(strict_error(report, own, tensors))
    source, notes = (input, ()) if stem else convert_input(tensors, _first_conv(model), source, input)
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(tensors[name])  # state_dict shares memory with the model
    digests = {name: tensor_digest(tensors[name].to(own[name].dtype)) for name in report.loaded}
    return replace(report, source_input=source, notes=(*report.notes, *notes), digests=digests)


def convert_weights(file: WeightFile, path: str | Path, *, input: InputSpec | None = None) -> Names:
    """Write another project's file under our names to .safetensors; the returned names list what has no place in ours.

    `input` says how its images were normalised, where the file does not or is wrong. ValueError where neither tells,
    for Detectron's folded BatchNorm, which only makes sense in the model that it is loaded into, and for MSRA ResNets.
    """
    path, layout = Path(path), layout_of(file)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(f"{path}: expected a name that ends in .safetensors, in a folder that exists")
    names, input = our_names(file, layout), input or input_of(file, layout)
    if input is None:
        raise ValueError(
            f"{file.path}: does not say how its images were normalised; state mean, std and order "
            "(--mean, --std, --order)"
        )
    if layout == "Detectron" and any("_bn_s" in name for name in names.found.values()):
        raise ValueError(f"{file.path}: has folded BatchNorm, which only a model can use; name it in start.weights")
    tensors = _our_tensors(file, names, layout)
    refuse_other_stride(file.path, layout, names.found, tensors, input)
    facts = {"input": input_text(input), "converted_from": f"{Path(file.path).name} {file.hash}"}
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, facts)
    return names


def _our_tensors(file: WeightFile, names: Names, layout: str) -> dict[str, Tensor]:
    """A file's tensors by our names and in our layout, with the variances that our epsilon needs."""
    tensors = {ours: to_our_rows(ours, file.tensors[name], layout) for ours, name in names.found.items()}
    if file.hash.startswith(WITHOUT_EPSILON):
        tensors |= {ours: value - EPSILON for ours, value in tensors.items() if ours.endswith("running_var")}
    return tensors


def _is_timm(model: nn.Module) -> bool:
    return hasattr(backbone_of(model), "classifier_names")


def _first_conv(model: nn.Module) -> str:
    """Name of the weight that sees the image; "" where there is no single one that can be rescaled."""
    own = named_tensors(model)
    names = (f"backbone.{backbone_of(model).first_conv}",) if _is_timm(model) else FIRST_CONVS
    return next((name for name in names if name in own), "")


def _account(
    model: nn.Module, file: WeightFile, layout: str, scope: str, stem: str | None, source: InputSpec | None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Tensors by our name and in our layout, and a report of those that would be loaded."""
    own, expected = named_tensors(model), expected_names(model, scope)
    names, net = our_names(file, layout), backbone_of(model)
    if _is_timm(model):
        matched, heads = match_timm(names.found, own, net.classifier_names, net.feature_names)
        names = Names(matched, (*names.left_out, *heads), names.unknown)
    tensors = _our_tensors(file, names, layout)
    names = _sort_out(names, own, tensors, expected)
    reset, notes = _changed_predictors(model, own, tensors) if scope == "detector" else ((), ())
    adapted = {}
    if stem is not None:
        adapted = adapt_stem(stem, file.path, tensors, own, _first_conv(model), source)
        reset = (*reset, *(adapted if stem == "random" else ()))
    found = {ours: name for ours, name in names.found.items() if ours not in reset}
    if layout == "Detectron":
        found |= _unfold(model, found, tensors)
    wanted = [name for name in expected if name not in reset]
    mismatched = {
        name: (tuple(tensors[name].shape), tuple(own[name].shape))
        for name in wanted
        if name in found and tensors[name].shape != own[name].shape
    }
    return tensors, LoadReport(
        path=file.path,
        hash=file.hash,
        layout=layout,
        scope=scope,
        loaded={name: found[name] for name in wanted if name in found and name not in mismatched},
        missing=tuple(name for name in wanted if name not in found),
        unexpected=names.unknown,
        mismatched=mismatched,
        left_out=(*names.left_out, *(names.found[name] for name in reset if name in names.found), *file.left_out),
        reset=reset,
        notes=(*notes, *(f"{name}: {how} (start.stem)" for name, how in adapted.items())),
        adapted=adapted,
    )


def _sort_out(names: Names, own: dict[str, Tensor], tensors: dict[str, Tensor], expected: Iterable[str]) -> Names:
    """Sort unexpected names into left out (another part, a zero bias before a norm) and unknown; drop counters."""
    expected = set(expected)
    parts = {name.split(".")[0] for name in expected}
    found, left_out, unknown = {}, list(names.left_out), list(names.unknown)
    for ours, name in names.found.items():
        if ours in expected:
            found[ours] = name
        elif ours.endswith(COUNTER):
            continue
        elif ours in own or ours.split(".")[0] not in parts or _is_zero_bias(ours, own, tensors[ours]):
            left_out.append(name)
        else:
            unknown.append(name)
    return Names(found, tuple(left_out), tuple(unknown))


def _is_zero_bias(name: str, own: dict[str, Tensor], value: Tensor) -> bool:
    """A bias of zeros for a convolution that has none, because a norm follows (Detectron's ImageNet files have one)."""
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in own and not value.any()


def _changed_predictors(
    model: nn.Module, own: dict[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Predictors that keep their initial values, because the file has another number of classes or keypoints; notes."""
    names, notes = [], []
    # One box for all classes is no matter of classes.
    same = {name for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    for predictor in () if backbone_of(model) is model else model.predictors():
        tensor, axis = predictor.tensor, predictor.axis
        if tensor not in tensors or own[tensor].shape[axis] == tensors[tensor].shape[axis]:
            continue
        names += [name for name in own if name.startswith(predictor.prefixes) and name not in same]
        theirs, ours = (values[tensor].shape[axis] - predictor.background for values in (tensors, own))
        part = {"classes": "class", "keypoints": "keypoint"}[predictor.rows]
        notes.append(
            f"the file predicts {theirs} {predictor.rows} and this model {ours}: {part} predictors keep their initial "
            "values"
        )
    return tuple(names), tuple(notes)


def _unfold(model: nn.Module, found: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, str]:
    """Statistics for the frozen norms of a Detectron file, which has BatchNorm folded into scale and shift.

    Mean 0 and variance 1 - epsilon make a frozen BatchNorm exactly that scale and shift; a live one cannot use them.
    """
    prefix, added = prefix_of(model), {}
    for module_name, module in model.named_modules():
        norm = prefix + module_name
        if not isinstance(module, FrozenBatchNorm) or f"{norm}.weight" not in found or f"{norm}.running_mean" in found:
            continue
        tensors[f"{norm}.running_mean"] = torch.zeros_like(module.running_mean)
        tensors[f"{norm}.running_var"] = torch.full_like(module.running_var, 1 - module.eps)
        added |= dict.fromkeys((f"{norm}.running_mean", f"{norm}.running_var"), f"folded in {found[f'{norm}.weight']}")
    return added
