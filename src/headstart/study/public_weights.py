"""Samples that public weights cost others, from their documented recipes.

Only entries whose recipe is published are listed; operations and seconds are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headstart.study.checks import check_names

IMAGENET_1K = 1_281_167  # training images of ILSVRC 2012
COCO_2017 = 117_266  # training images of 2017 with at least one annotation, which torchvision keeps
COCO_INSTANCES = 7.3  # 860,001 annotations on 118,287 images
COCO_PIXELS = 800 * 1333  # shorter side 800, longer at most 1333: an upper bound for an image


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """A documented training: images a pass, passes, pixels a side, views of an image in a pass, and where it is said.

    after names the weights it started from, whose cost is part of its own.
    """

    num_images: int
    epochs: float
    pixels_per_image: int
    source: str
    instances_per_image: float = 1.0
    views: int = 1
    after: str | None = None

    def samples(self) -> dict[str, float]:
        """Images, instances and pixels seen until these weights existed; each view of an image counts as an image."""
        images = self.num_images * self.epochs * self.views
        own = {
            "images": images,
            "instances": images * self.instances_per_image,
            "pixels": images * self.pixels_per_image,
        }
        before = PUBLIC_WEIGHTS[self.after].samples() if self.after else dict.fromkeys(own, 0.0)
        return {name: value + before[name] for name, value in own.items()}


def _imagenet(epochs: float, side: int, source: str, *, views: int = 1) -> PublicWeights:
    return PublicWeights(
        num_images=IMAGENET_1K, epochs=epochs, pixels_per_image=side * side, source=source, views=views
    )


_STRIKES_BACK = "Wightman et al. 2021, arXiv 2110.00476, table 1"
_MOCO = "Chen et al. 2020, arXiv 2003.04297; two 224-pixel views an image"
PUBLIC_WEIGHTS: dict[str, PublicWeights] = {
    # The round figure with which the paper counts.
    "rethinking-imagenet": PublicWeights(
        num_images=1_280_000,
        epochs=100,
        pixels_per_image=224 * 224,
        source="He, Girshick, Dollár 2019, arXiv 1811.08883, section 3",
    ),
    "detectron-resnet-gn": _imagenet(100, 224, "Wu and He 2018, arXiv 1803.08494, section 4.1"),
    "torchvision-resnet-v1": _imagenet(90, 224, "pytorch/vision references/classification, default of train.py"),
    "torchvision-resnext-v1": _imagenet(100, 224, "pytorch/vision references/classification/README.md"),
    "torchvision-resnet50-v2": _imagenet(600, 176, "pytorch/vision issue 3995, comment 1013906621"),
    "timm-a1": _imagenet(600, 224, _STRIKES_BACK),
    "timm-a2": _imagenet(300, 224, _STRIKES_BACK),
    "timm-a3": _imagenet(100, 160, _STRIKES_BACK),
    "moco-v2-200": _imagenet(200, 224, _MOCO, views=2),
    "moco-v2-800": _imagenet(800, 224, _MOCO, views=2),
    "torchvision-maskrcnn-resnet50-v1": PublicWeights(
        num_images=COCO_2017,
        epochs=26,
        pixels_per_image=COCO_PIXELS,
        instances_per_image=COCO_INSTANCES,
        source="pytorch/vision references/detection/README.md",
        after="torchvision-resnet-v1",
    ),
}


def check_public(names: Mapping[str, str]) -> None:
    """ValueError for public weights, by arm, that the table does not have."""
    for arm, name in names.items():
        check_names([name], PUBLIC_WEIGHTS, f"public_weights.{arm}.name:")
