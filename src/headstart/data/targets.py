"""Ground truth of training batches as arrays, and the conditions of a keypoint head on a data set.

N annotations of the data set, K keypoints; M side of a mask frame.
"""

from dataclasses import replace

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.masks import FrameTable
from headstart.data.paste import Paste, in_window, visible_objects
from headstart.data.stream import Raw
from headstart.data.views import View, move_boxes, move_frames, move_keypoints

SLOT_MULTIPLE = 4  # ground-truth slots are rounded up to this
# COCO's keypoints are pixel indices, boxes and polygons continuous coordinates: the centre of pixel i is at i + 0.5
# (Detectron2 adds 0.5 when it reads and subtracts it when it writes, as here; torchvision does not, and is half a pixel
# off in mirrored images).
PIXEL_CENTRE = 0.5


class Targets:
    """Ground truth by image: boxes cut to the image, mask frames over the cut boxes, keypoints at pixel centres.

    max_objects: most objects of an image, the rest being left out (None: all). copies: images whose objects a batch
    slot may show together (2 under copy-paste, 4 in a mosaic).
    """

    def __init__(self, dataset: Dataset, *, mask_frame: int, max_objects: int | None, copies: int = 1):
        boxes = dataset.clipped(dataset.boxes)
        points = dataset.keypoints
        if points is not None:
            points = points + np.array([PIXEL_CENTRE, PIXEL_CENTRE, 0], np.float32)
        self.dataset = replace(dataset, boxes=boxes, keypoints=points)
        # Boxes outside their image, or thinner than a hundredth of a pixel, are left out.
        usable = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(axis=1)
        self.chosen = [np.flatnonzero(usable[a:b]) + a for a, b in zip(dataset.first, dataset.first[1:])]
        self.left_out = int(len(usable) - usable.sum())
        fullest = max((len(chosen) for chosen in self.chosen), default=0)
        self.capped = 0
        if max_objects is not None and fullest > max_objects:
            self.capped = sum(max(len(chosen) - max_objects, 0) for chosen in self.chosen)
            self.chosen = [chosen[:max_objects] for chosen in self.chosen]
            fullest = max_objects
        fullest *= copies  # no object is dropped for lack of a slot
        self.num_slots = max(-(-fullest // SLOT_MULTIPLE) * SLOT_MULTIPLE, SLOT_MULTIPLE)
        self.frames = FrameTable(self.dataset, mask_frame) if mask_frame else None
        self.mask_frame = mask_frame
        self.num_keypoints = 0 if dataset.keypoints is None else dataset.keypoints.shape[1]

    def notes(self) -> list[str]:
        """Objects that training leaves out, one line a reason."""
        found = {"boxes lie outside their image": self.left_out, "objects are over data.max_objects": self.capped}
        end, path = "and take no part in training", self.dataset.path
        return [f"{path}: {count} {reason} {end}" for reason, count in found.items() if count]

    def fill(self, raw: Raw) -> dict[str, np.ndarray]:
        """Ground-truth arrays of a batch by the field names of `Batch`; no segmentation gives an empty frame."""
        num, slots, side, points = len(raw.views), self.num_slots, self.mask_frame, self.num_keypoints
        out = {
            "gt_boxes": np.zeros((num, slots, 4), np.float32),
            "gt_labels": np.zeros((num, slots), np.int64),
            "gt_valid": np.zeros((num, slots), bool),
            "gt_crowd": np.zeros((num, slots), bool),
            "gt_masks": np.zeros((num, slots, side, side), bool),
            "gt_keypoints": np.zeros((num, slots, points, 3), np.float32),
        }
        for slot, (index, view) in enumerate(zip(raw.indices.tolist(), raw.views)):
            place = {name: array[slot] for name, array in out.items()}
            if view.whole is None:
                self._fill_one(place, index, view)
            else:
                tiles = [(tile.index, tile.view) for tile in raw.tiles[slot]] if raw.tiles else []
                self._fill_windows(place, [(index, view), *tiles], raw.pastes[slot] if raw.pastes else None)
        return out

    def _fill_windows(self, out: dict[str, np.ndarray], parts: list[tuple[int, View]], paste: Paste | None) -> None:
        """Objects of images in their windows, then the objects pasted over them."""
        cover = None if paste is None else paste.alpha
        own = [visible_objects(self.dataset, self.frames, self.chosen[index], view, cover) for index, view in parts]
        at, data = 0, self.dataset
        for part in (*own, *(() if paste is None else (paste.objects,))):
            n, place = part.indices, slice(at, at + len(part.indices))
            out["gt_boxes"][place], out["gt_labels"][place], out["gt_valid"][place] = part.boxes, data.labels[n], True
            out["gt_crowd"][place] = data.crowd[n] | data.difficult[n]
            out["gt_masks"][place] = part.frames
            if part.keypoints is not None:
                out["gt_keypoints"][place] = part.keypoints
            at = place.stop

    def in_view(self, index: int, view: View) -> np.ndarray:
        """Annotations of an image whose boxes are partly in a view, hidden ones included."""
        chosen, data = self.chosen[index], self.dataset
        if view.whole is None or not len(chosen):
            return chosen
        boxes = move_boxes(data.boxes[chosen], data.size(index), view)
        return chosen[in_window(boxes, view)[1]]

    def _fill_one(self, out: dict[str, np.ndarray], index: int, view: View) -> None:
        chosen, data = self.chosen[index], self.dataset
        count, original = len(chosen), data.size(index)
        if not count:
            return
        out["gt_boxes"][:count] = move_boxes(data.boxes[chosen], original, view)
        out["gt_labels"][:count] = data.labels[chosen]
        out["gt_valid"][:count] = True
        out["gt_crowd"][:count] = data.crowd[chosen] | data.difficult[chosen]  # both are ignored in the loss
        if self.frames is not None:
            frames = self.frames.frames(chosen) & (data.segment_kind[chosen] != 0)[:, None, None]
            out["gt_masks"][:count] = move_frames(frames, view)
        if data.keypoints is not None:
            out["gt_keypoints"][:count] = move_keypoints(data.keypoints[chosen], original, view, data.left_right)


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
    """Images with an object that has a labelled keypoint (Detectron's rule for training; the paper, section 4.6).

    The number of other images is in the notes of the result.
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
    """A note if no keypoints are named as left and right: a mirrored image then keeps all names."""
    if data.left_right:
        return []
    return [
        f"{data.path}: no two keypoints are named left_... and right_...: in a mirror image every point keeps its name"
    ]


def sigmas_of(given: tuple[float, ...] | None, data: Dataset) -> tuple[float, ...] | None:
    """OKS sigmas for a data set's K keypoints; None means COCO's 17.

    ValueError naming the recipe's field if their number is not K.
    """
    num = data.keypoints.shape[1]
    if len(given or range(17)) != num:
        stated = "null, COCO's for its 17" if given is None else f"{len(given)} numbers"
        raise ValueError(
            f"evaluate.keypoint_sigmas: {stated}, but {data.path} has {num} keypoints; expected {num} numbers, one each"
        )
    return given


def _labelled(data: Dataset) -> np.ndarray:
    """True for each annotation with a labelled keypoint, bool [N]."""
    return (data.keypoints[:, :, 2] > 0).any(axis=1)
