"""Validation images too few to tell: how far other images of the same kind could move a difference, and what helps."""

from dataclasses import dataclass
from math import ceil, sqrt

from headstart.verdict.earned import Obstacle

# Standard deviation of a difference of AP from the choice of the validation images, times the square root of their
# number: 0.10 and 0.25 in docs/results.md, by resampling 200 images; the larger one.
IMAGE_SPREAD = 0.25
TOO_FEW = 0.1  # smallest difference, by the images alone, from which they are said to tell nothing
WANTED = 0.04  # difference for which a number of images is advised
LEAST_SHARE = 0.1  # of all images to validate on, from which more images are divided as those (Ultralytics: 10 %)
UNTIL_THEN = (
    "until then use pre-trained weights, which few images need most, or measure on a larger set of the same kind"
)


@dataclass(frozen=True)
class ImageCounts:
    """Images of a study: those to validate on, and all."""

    num_val: int
    num_all: int

    @property
    def width(self) -> float:
        """Largest shift of a difference by other validation images, either way, at 95 %."""
        return 1.96 * IMAGE_SPREAD / sqrt(self.num_val)

    @property
    def are_few(self) -> bool:
        """True if other images could move a difference by TOO_FEW or more."""
        return self.width >= TOO_FEW

    @property
    def are_divided(self) -> bool:
        """True if the images to validate on are a usual part of all."""
        return self.num_val >= LEAST_SHARE * self.num_all

    @property
    def wanted(self) -> int:
        """Images that tell differences of WANTED: all, divided as these, or those to validate on alone."""
        share = self.num_val / self.num_all if self.are_divided else 1.0
        return ceil((1.96 * IMAGE_SPREAD / WANTED) ** 2 / share / 10) * 10

    @property
    def more(self) -> str:
        """Words on how many more to label."""
        if self.are_divided:
            return f"about {self.wanted - self.num_all:,} more images"
        return f"about {10 * ceil((self.wanted - self.num_val) / 10):,} more validation images"

    @property
    def obstacle(self) -> Obstacle:
        """The obstacle of too few images."""
        who = "with {:,} of them to validate on, " if self.are_divided else ""
        reason = (
            f"{who.format(self.num_val)}other images of the same kind could move the difference by "
            f"{points_up(self.width)} points either way"
        )
        count = f"{self.num_all:,} images" if self.are_divided else f"{self.num_val:,} validation images"
        return Obstacle("images", f"{count} cannot tell", reason)

    @property
    def remedy(self) -> str:
        """Words on what could tell."""
        return f"label about {self.wanted:,} images, for differences of {100 * WANTED:g} points; {UNTIL_THEN}"


def points_up(value: float) -> str:
    """Points with two digits."""
    return f"{100 * value:.2g}" if value < 0.1 else f"{100 * value:.0f}"
