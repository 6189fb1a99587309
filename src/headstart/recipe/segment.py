"""The recipe of the segmentation task: a class for each pixel, from label maps or from the instances of a COCO file."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headstart.recipe.fields import DetNetBackbone, Norm, Part, Positive, ResNetBackbone, TimmBackbone
from headstart.recipe.recipe import AnyRecipe, ClassifyEvaluate


class SegmentData(Part):
    train: str
    train_images: str | None
    train_labels: str | None
    val: str
    val_images: str | None
    val_labels: str | None
    ignore: tuple[Annotated[int, Field(ge=0, le=255)], ...]
    fraction: float = Field(gt=0, le=1)
    fraction_seed: int = Field(ge=0)
    num_workers: int = Field(ge=0)
    cache: bool

    @model_validator(mode="after")
    def _same_kind_of_labels(self) -> "SegmentData":
        if (self.train_labels is None) != (self.val_labels is None):
            name, other = ("train", "val") if self.train_labels is None else ("val", "train")
            raise ValueError(f"data.{name}_labels: missing, but data.{other}_labels is given; expected both or neither")
        return self


class SegmentInput(Part):
    short: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    long: int = Field(gt=0)
    test_short: int = Field(gt=0)
    test_long: int = Field(gt=0)
    flip: float = Field(ge=0, le=1)
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    order: Literal["rgb", "bgr"]


class SemanticPart(Part):
    channels: int = Field(ge=1)
    norm: bool
    loss_stride: Literal[1, 2, 4]
    weight: Positive


class SegmentModel(Part):
    backbone: Annotated[ResNetBackbone | TimmBackbone | DetNetBackbone, Field(discriminator="kind")]
    norm: Norm
    norm_groups: int = Field(ge=1)
    pyramid_channels: int = Field(ge=1)
    pyramid_norm: bool
    semantic: SemanticPart


class SegmentRecipe(AnyRecipe):
    """A segmentation run, resolved."""

    task: Literal["segmentation"]
    data: SegmentData
    input: SegmentInput
    model: SegmentModel
    evaluate: ClassifyEvaluate
