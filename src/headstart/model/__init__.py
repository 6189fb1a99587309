"""Models, and the contract that all of them keep beside nn.Module's."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Predictor:
    """Output layers with one row for each class or keypoint: those tensors whose names begin with one of `prefixes`.

    They keep their initial values when weights are loaded that have another number of rows: `tensor` has that number,
    plus `background`, along `axis`.
    """

    rows: str  # "classes" or "keypoints"
    prefixes: tuple[str, ...]
    tensor: str
    axis: int = 0
    background: int = 0


class AnyModel(Protocol):
    """Contract of a model, for loading weights and for the initialisation audit."""

    def predictors(self) -> tuple[Predictor, ...]: ...

    def initialisers(self) -> dict[str, str]:
        """Initial values in words, by the first part of the tensors' names; the backbone has its own `initialiser`."""
