"""A trained model as one file for others: safetensors, or a fixed-shape program of predict (torch.export, ONNX).

A program is written only if it gives the detections of the model itself on real images.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.batch import Detections
from headstart.data.order import STRIDE
from headstart.data.views import View, stack_images
from headstart.files import replacing
from headstart.model.build import input_spec
from headstart.model.detector import Detector
from headstart.tasks.detection import validation_data
from headstart.tasks.predict import choose_weights, image_files, load_trained
from headstart.tasks.task import Trained, input_size
from headstart.tasks.trained import trained_model
from headstart.weights import checkpoint
from headstart.weights.input import input_text

SUFFIXES = (".safetensors", ".pt2", ".onnx")
NUM_CHECKED = 4  # images of the validation set that a program is compared on
# Tolerances within which two detections are the same: other kernels add in another order, which moves a score in its
# last digits and a box by a fraction of that times its size.
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE, HEAT_TOLERANCE = 0.05, 1e-3, 1e-2, 0.05
OPSET = 18  # the lowest that torch's exporter writes without conversion
Program = Callable[[Tensor, Tensor], dict[str, Tensor]]


def export_weights(source: str | Path, out: str | Path, *, weights: str = "live") -> None:
    """A checkpoint's tensors with its recipe, classes and input as metadata, to .safetensors; whole or not at all.

    `load_trained` (so eval and predict) and `start.weights` take the file. The optimizer's state is left behind.
    weights: as for `load_trained`. ValueError for a checkpoint that `load_trained` would refuse.
    """
    path, out = checkpoint.newest(source), _writable(out)
    state = choose_weights(checkpoint.load(path), path, weights)
    model, recipe, _ = trained_model(state, path)
    with replacing(out) as temporary:
        checkpoint.save_export(
            temporary, {**state, "model": model.state_dict()}, {"input": input_text(input_spec(recipe))}
        )


class Predict(nn.Module):
    """A detector's predict with plain tensors on both sides: images [1,3,H,W], sizes [1,2] to a dict by field name."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        return tensors_of(self.model.predict(images, sizes))


def tensors_of(found: Detections) -> dict[str, Tensor]:
    """Fields of detections that are not None, by name."""
    named = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def export_program(
    source: str | Path,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    images: Sequence[str | Path] = (),
    weights: str = "live",
) -> int:
    """Write predict as a program for images of one padded size (height, width), by default the recipe's landscape one.

    Before it is written it is compared with the model on `images` (files and folders), by default a few of the
    recipe's validation images; returns how many detections were compared. weights: as for `load_trained`.
    ValueError, and no file, if it cannot be exported, gives other detections than the model, or has none to compare.
    """
    out = _writable(out)
    trained = load_trained(source, {"device": "cpu", "train.precision": "fp32"}, weights=weights)
    if trained.recipe.task != "detection":
        raise ValueError(f"{source}: is no detector, and a program is a detector's predict; expected .safetensors")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise ValueError(f"{out}: ONNX needs {', '.join(missing)}, which pip install 'headstart[export]' brings")
    size = size or input_size(trained.recipe)
    inputs = [_input(trained, pixels, size) for pixels in _check_images(trained, images)]
    with torch.no_grad():  # before the export: values that a call computes once and keeps must be real numbers
        expected = [tensors_of(trained.model.predict(*pair)) for pair in inputs]
    count = sum(int(found["valid"].sum()) for found in expected)
    if not count:
        raise ValueError(
            f"{source}: finds nothing on {len(inputs)} images to compare a program by; "
            "name images with objects by --check"
        )
    write = _write_onnx if out.suffix == ".onnx" else _write_torch

    with replacing(out) as temporary:
        program = write(Predict(trained.model).eval(), inputs[0], temporary, _facts(trained, size))
        for number, (pair, found) in enumerate(zip(inputs, expected)):
            odd = difference(found, program(*pair))
            if odd:
                raise ValueError(f"{out}: not written, because the program is not the model: image {number}: {odd}")
    return count


def difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """First difference between two sets of detections of an image, in any order; "" if none is beyond rounding."""
    ours, theirs = (
        {name: value[0, part["valid"][0]].detach().double().numpy() for name, value in part.items()}
        for part in (expected, found)
    )
    if set(ours) != set(theirs) or len(ours["scores"]) != len(theirs["scores"]):
        return f"{len(theirs['scores'])} detections, expected {len(ours['scores'])}"
    near = (ours["labels"][:, None] == theirs["labels"]) & _near(ours, theirs, "scores", SCORE_TOLERANCE)
    near &= _near(ours, theirs, "boxes", BOX_TOLERANCE) & _near(ours, theirs, "masks", MASK_TOLERANCE)
    near &= _near(ours, theirs, "heat_maps", HEAT_TOLERANCE)
    for index, row in enumerate(near):
        if not row.any():
            box = [round(value, 2) for value in ours["boxes"][index].tolist()]
            return f"the detection at {box} with score {float(ours['scores'][index]):.4f} is not the same"
        near[:, np.flatnonzero(row)[0]] = False  # each counts once
    return ""


def _near(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], name: str, tolerance: float) -> np.ndarray:
    """Agreement of ours [n] with theirs [n] in one field, bool [n,n]; all True where there is no such field."""
    num = len(ours["scores"])
    if name not in ours:
        return np.ones((num, num), dtype=bool)
    a, b = (part[name].reshape(num, -1) for part in (ours, theirs))
    return np.array([(np.abs(b - row) <= tolerance).all(axis=1) for row in a]).reshape(num, num)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "800x1344"; ValueError for anything that the network's strides do not divide."""
    if text is None:
        return None
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) != 2 or any(side < STRIDE or side % STRIDE for side in sides):
        raise ValueError(f"size: {text!r}, expected HEIGHTxWIDTH in multiples of {STRIDE}, such as 800x1344")
    return sides[0], sides[1]


def _check_images(trained: Trained, images: Sequence[str | Path]) -> list[np.ndarray]:
    if images:
        return [trained.pixels(path) for path in image_files(images)]
    try:
        data = validation_data(trained.recipe)
        return [trained.pixels(data.image_path(index)) for index in range(min(NUM_CHECKED, data.num_images))]
    except ValueError as error:
        raise ValueError(f"{error}; a program is compared with the model on images: name some by --check") from None


def _input(trained: Trained, pixels: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An image scaled to fit into `size`, normalised and padded: images [1,3,H,W] and sizes [1,2]."""
    scale = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    fitted = tuple(min(max(round(side * scale), 1), most) for side, most in zip(pixels.shape[:2], size))
    batch = stack_images([pixels], [View(fitted, False)], size, input_spec(trained.recipe), "cpu")
    return batch.contiguous(), torch.tensor([fitted])


def _facts(trained: Trained, size: tuple[int, int]) -> dict[str, Any]:
    """Metadata for users of the program: input normalisation, image shape, classes."""
    part = trained.recipe.input
    return {
        "input": {"mean": part.mean, "std": part.std, "order": part.order, "range": "0..255"},
        "images": [1, part.channels, *size],
        "sizes": "height and width of the scaled image before it was padded with zeros at the right and bottom",
        "classes": {"ids": trained.category_ids, "names": trained.class_names},
        "step": trained.step,
    }


def _write_torch(module: Predict, example: tuple[Tensor, Tensor], path: Path, facts: dict[str, Any]) -> Program:
    try:
        with torch.no_grad():
            program = torch.export.export(module, example)
        with path.open("w+b") as file:  # a file, since a path would have to end in .pt2
            torch.export.save(program, file, extra_files={"headstart.json": json.dumps(facts)})
            file.seek(0)
            return torch.export.load(file).module()
    except Exception as error:  # the exporter fails in as many ways as there are operations
        raise ValueError(f"{path.name}: torch.export cannot export this model ({_first_line(error)})") from None


def _write_onnx(module: Predict, example: tuple[Tensor, Tensor], path: Path, facts: dict[str, Any]) -> Program:
    import onnxruntime
    from onnxscript import optimizer

    try:
        names = list(module(*example))
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                verbose=False,
                optimize=False,  # its rewriting takes three quarters of the whole time (profile of a small net)
                opset_version=OPSET,
                input_names=["images", "sizes"],
                output_names=names,
            )
        # 1.3 s on a small net, for 1,039 nodes (whole optimizer: 1,016) once onnxruntime has simplified the graph
        optimizer.fold_constants(program.model, onnx_shape_inference=True)
        optimizer.remove_unused_nodes(program.model)
        program.model.metadata_props["headstart"] = json.dumps(facts)
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; what it cannot fold is of no concern here
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{path.name}: this model cannot be exported to ONNX ({_first_line(error)})") from None

    def run(images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"images": images.numpy(), "sizes": sizes.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found)}

    return run


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _writable(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r} of an export, expected {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder does not exist")
    return path
