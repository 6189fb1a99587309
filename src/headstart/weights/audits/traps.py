"""Eleven ways in which trainers silently void an arm of a comparison, with the threads that report them."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Trap:
    """One trap: the trainer, the user's setting, its effect, the public threads, and the finding of the audit."""

    number: int
    trainer: str
    setting: str
    effect: str
    threads: tuple[str, ...]
    finding: str


_FROZEN = "tensors that are random and frozen"
_IDENTITY = "frozen norms with identity statistics"

TRAPS = (
    Trap(
        1,
        "Detectron2",
        "MODEL.WEIGHTS emptied",
        "two stages and all norms of the backbone stay frozen",
        ("facebookresearch/detectron2#914",),
        f"{_FROZEN}; {_IDENTITY}",
    ),
    Trap(
        2,
        "mmdetection",
        "init_cfg=None (pretrained=None)",
        "the first stage stays frozen and norms stay in eval mode, unless two more keys change",
        ("open-mmlab/mmdetection#311", "open-mmlab/mmdetection#9017"),
        f"{_FROZEN}; {_IDENTITY}",
    ),
    Trap(
        3,
        "maskrcnn-benchmark",
        "a number of frozen stages, 0 or -1",
        "its meaning depends on the trainer: the stem may stay frozen",
        ("facebookresearch/maskrcnn-benchmark#386",),
        f"{_FROZEN}; numbers are refused as start.freeze",
    ),
    Trap(
        4,
        "torchvision before 2022",
        "pretrained=False, pretrained_backbone=False",
        "random layers are frozen, and norms are frozen at identity: no normalisation at all",
        ("pytorch/vision#2164", "pytorch/vision#5443"),
        f"{_FROZEN}; {_IDENTITY}; more frozen than declared",
    ),
    Trap(
        5,
        "Hugging Face transformers, DETR",
        "a backbone without pre-trained weights",
        "every BatchNorm becomes frozen, and early stages get no gradient",
        ("read in its source",),
        f"{_FROZEN}; {_IDENTITY}; more frozen than declared",
    ),
    Trap(
        6,
        "PaddleDetection",
        "pretrain_weights left out",
        "freeze_norm stays true (global statistics), and the first stage stays frozen",
        ("PaddlePaddle/PaddleDetection#2822", "PaddlePaddle/PaddleDetection#8882"),
        f"{_FROZEN}; {_IDENTITY}; more frozen than declared",
    ),
    Trap(
        7,
        "Ultralytics",
        "pretrained=False with a .pt model",
        "weights load all the same: the suffix of the file decides",
        ("ultralytics/ultralytics#3582", "ultralytics/ultralytics#8499", "ultralytics/ultralytics#20779"),
        "tensors loaded, or changed after construction, in an arm declared random",
    ),
    Trap(
        8,
        "RF-DETR",
        "pretrain_weights=None",
        "the constructor loads DINOv2 by itself; a flag to freeze was once ignored",
        ("roboflow/rf-detr#290", "roboflow/rf-detr#529", "roboflow/rf-detr#357"),
        "tensors that leave the constructor the same for every seed, or change after it; other freezing than declared",
    ),
    Trap(
        9,
        "Keras",
        "a frozen base with BatchNorm",
        "statistics follow the new batches, and preprocessing differs: features are worse than random",
        ("keras-team/keras#3622",),
        "frozen norms whose statistics move; another input normalisation than that of the weights",
    ),
    Trap(
        10,
        "LibreYOLO with Transformers 5",
        "pre-trained weights",
        'the loader reports "223/223 loaded", and nothing was',
        ("LibreYOLO/libreyolo#444",),
        "tensors that count as loaded, but have their initial values or differ from the file",
    ),
    Trap(
        11,
        "LightlyTrain before 0.14.3",
        "a pre-trained detector",
        "`pretrained` was hard-coded to False: the arm of that name is random",
        ("lightly-ai/lightly-train#802",),
        "nothing loaded in an arm declared pre-trained; a file whose network was never trained",
    ),
)


@dataclass(frozen=True)
class Trainer:
    """A trainer whose checkpoints can be audited: its traps, by number, and the input that its models expect."""

    traps: tuple[int, ...]
    input: str


_IMAGENET = "RGB, 0 to 1, less ImageNet's mean, divided by its deviation"
TRAINERS = {
    "detectron2": Trainer((1,), "BGR, 0 to 255, less MODEL.PIXEL_MEAN, divided by MODEL.PIXEL_STD"),
    "headstart": Trainer((), "that of the recipe in the file"),
    "hf": Trainer((5, 10), "that of preprocessor_config.json beside the file"),
    "lightly": Trainer((11,), _IMAGENET),
    "mmdetection": Trainer((2,), "that of the data_preprocessor of its configuration"),
    "rfdetr": Trainer((8,), _IMAGENET),
    "timm": Trainer((), "mean and std of the model's pretrained_cfg"),
    "torchvision": Trainer((4,), _IMAGENET),
    "ultralytics": Trainer((7,), "RGB, 0 to 1, without mean and deviation"),
}


def check_trainer(name: str) -> None:
    """ValueError for a trainer that is not known, naming the nearest."""
    if name not in TRAINERS:
        near = difflib.get_close_matches(name[:100], TRAINERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(TRAINERS)}"
        raise ValueError(f"--as: {name[:100]!r} is not known, {hint}")
