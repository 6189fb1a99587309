"""What training a keypoint head asks of a data set."""

from dataclasses import replace

import numpy as np

from headstart.data.dataset import Dataset

# COCO's keypoints are pixel indices, boxes and polygons continuous coordinates: the centre of pixel i is at i + 0.5
# (Detectron2 shifts on the way in and back on the way out, as we do; torchvision never does, and is half a pixel off
# where it mirrors an image).
PIXEL_CENTRE = 0.5


def require_keypoints(data: Dataset) -> None:
    """ValueError unless categories name keypoints and some object has a labelled one."""
    if data.keypoints is None:
        raise ValueError(
            f"{data.path}: category {data.category_ids[0]} ({data.class_names[0]!r}) has no field 'keypoints' (the "
            "names of the points), nor has another, which model.keypoint.enabled needs; expected a COCO keypoint file "
            "such as person_keypoints_train2017.json"
        )
    if not _labelled(data).any():
        raise ValueError(
            f"{data.path}: no annotation has a field 'keypoints' with a labelled point (visibility 1 or 2), which "
            "model.keypoint.enabled needs"
        )


def with_keypoints(data: Dataset) -> Dataset:
    """The images that show an object with a labelled keypoint (Detectron's rule for training; the paper, 4.6).

    The others are counted in notes.
    """
    require_keypoints(data)
    kept = np.unique(data.image_of[_labelled(data) & ~data.crowd])
    if len(kept) == data.num_images:
        return data
    note = (
        f"{data.path}: {data.num_images - len(kept)} of {data.num_images} images show no object with a labelled "
        "keypoint and take no part in training"
    )
    chosen = data.take(kept)
    return replace(chosen, notes=(*chosen.notes, note))


def mirror_note(data: Dataset) -> list[str]:
    """A line for a user whose keypoints have no left and right, as far as their names tell."""
    if data.left_right:
        return []
    return [
        f"{data.path}: no two keypoints are named left_... and right_...: in a mirror image every point keeps its name"
    ]


def sigmas_of(given: tuple[float, ...] | None, data: Dataset) -> tuple[float, ...] | None:
    """OKS sigmas for a data set's K keypoints; None stands for COCO's, which has 17.

    ValueError, naming the recipe's field, for another number of them.
    """
    num = data.keypoints.shape[1]
    if len(given or range(17)) != num:
        told = "null, COCO's for its 17" if given is None else f"{len(given)} numbers"
        raise ValueError(
            f"evaluate.keypoint_sigmas: {told}, but {data.path} has {num} keypoints; expected {num} numbers, one each"
        )
    return given


def _labelled(data: Dataset) -> np.ndarray:
    """Bool [N]: which annotations have a labelled keypoint."""
    return (data.keypoints[:, :, 2] > 0).any(axis=1)
