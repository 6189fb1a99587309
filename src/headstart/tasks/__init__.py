"""Table of tasks: one row each, with what other rooms need of a task. Imports no torch before a task is used.

A new task is a file of this room with the functions that `TaskRow` lists, and a row of TASKS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from headstart.metrics import pixels
from headstart.metrics.records import Records, ap_from_records, bootstrap_ap
from headstart.recipe.load import KINDS
from headstart.recipe.recipe import AnyRecipe


@dataclass(frozen=True)
class RecordsReader:
    """Access to the per-image records of a metric kind, `records-KIND-STEP.npz` in a run directory.

    load(path) reads them; measure(records) gives the metrics `columns` by name; bootstrap(list of records, ...) gives
    these for resampled images [R, records, columns].
    """

    columns: tuple[str, ...]
    load: Callable[..., Any]
    measure: Callable[..., dict[str, float]]
    bootstrap: Callable[..., Any]


@dataclass(frozen=True)
class MetricKind:
    """One kind of metrics: those of an evaluation row in order, the main one first; and that of a single class.

    per_class is "" for a kind without a table of classes; records is None for one without per-image records.
    """

    metrics: tuple[str, ...]
    per_class: str = ""
    records: RecordsReader | None = None


@dataclass(frozen=True)
class TaskRow:
    """One task: its module, the module that uses a trained model, and its metric kinds in order.

    `module` defines make_task(recipe) -> task.Task, num_training_images(recipe) -> int, and data_fingerprint(recipe,
    rehash=...) -> str.
    `trained` (None: `load_trained` refuses the task) defines evaluate_files and predict_files, the verbs eval and
    predict of the command line.
    num_classes: classes of the data set (COCO, ImageNet) that published model sizes are for. has_variants: whether
    evaluation fields can change the score of a finished run (`also_evaluate`).
    """

    module: str
    trained: str | None
    kinds: dict[str, MetricKind]
    num_classes: int
    has_variants: bool = False

    def functions(self) -> Any:
        """`module`, imported."""
        return import_module(self.module)

    def trained_functions(self) -> Any:
        """`trained`, imported."""
        assert self.trained is not None
        return import_module(self.trained)


_BOXES = RecordsReader(("AP", "AP50", "AP75"), Records.load, ap_from_records, bootstrap_ap)
_PIXELS = RecordsReader(pixels.COLUMNS, pixels.PixelRecords.load, pixels.pixel_metrics, pixels.bootstrap_pixels)
_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
_COCO_KEYPOINTS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")

TASKS = {
    "detection": TaskRow(
        module="headstart.tasks.detection",
        trained="headstart.tasks.predict",
        kinds={
            "box": MetricKind(_COCO, "AP", _BOXES),
            "mask": MetricKind(_COCO, "AP", _BOXES),
            "keypoints": MetricKind(_COCO_KEYPOINTS, "AP", _BOXES),
            "voc": MetricKind(("AP", "AP07")),
        },
        num_classes=80,
        has_variants=True,
    ),
    "classification": TaskRow(
        module="headstart.tasks.classification",
        trained=None,
        kinds={"class": MetricKind(("top1",), "top1")},
        num_classes=1000,
    ),
    "segmentation": TaskRow(
        module="headstart.tasks.segmentation",
        trained="headstart.tasks.segmentation",
        kinds={"semantic": MetricKind(pixels.COLUMNS, "IoU", _PIXELS)},
        num_classes=80,
    ),
}
assert TASKS.keys() == KINDS.keys(), "a task has a row here and a recipe there"
METRIC_KINDS = {kind: metrics for row in TASKS.values() for kind, metrics in row.kinds.items()}


def make_task(recipe: AnyRecipe) -> Any:
    """Model and data of a recipe, ready for the loop: a `task.Task`; ValueError if it cannot fit into memory."""
    from headstart.tasks.footprint import check_memory

    check_memory(recipe)
    return TASKS[recipe.task].functions().make_task(recipe)


def num_training_images(recipe: AnyRecipe) -> int:
    """Images that a recipe trains on; builds no model."""
    return TASKS[recipe.task].functions().num_training_images(recipe)


def data_fingerprint(recipe: AnyRecipe, *, rehash: bool = False) -> str:
    """Digest of the content of a recipe's training and validation data; builds no model.

    With `rehash` every image is read, also where its size and times are those of an earlier call.
    """
    return TASKS[recipe.task].functions().data_fingerprint(recipe, rehash=rehash)
