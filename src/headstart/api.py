"""The study as one object for Python and notebooks; the same functions as the command line calls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.data.images import load_image
from headstart.draw import draw
from headstart.inference import ImagePrediction
from headstart.study.definition import parse_study, read_study
from headstart.study.execute import run_study
from headstart.study.plan import Plan
from headstart.study.report import build_report
from headstart.study.run import Prepared, prepare, refuse_undeclared

STUDY_FIELDS = (
    "seeds",
    "fractions",
    "schedules",
    "name",
)  # overrides of these change the study, all others its recipes


@dataclass(frozen=True)
class Study:
    """A study ready to run: its definition, its plan, and where it will lie."""

    prepared: Prepared
    out: Path

    @classmethod
    def read(cls, name: str | Path, overrides: dict[str, Any] | None = None, *, out: str | Path = "runs") -> "Study":
        """A shipped study or a YAML file, with overrides {"seeds": 3, "train.batch": 4}; ValueError if it cannot be."""
        patch = dict(overrides or {})
        own = {key: patch.pop(key) for key in STUDY_FIELDS if key in patch}
        study = read_study(name)
        if own:
            study = parse_study({**study.model_dump(mode="json", exclude_none=True), **own}, source=str(name))
        return cls(prepare(study, patch), Path(out))

    @property
    def plan(self) -> Plan:
        """Cells and segments."""
        return self.prepared.plan

    @property
    def directory(self) -> Path:
        """Where the study lies."""
        return self.out / self.prepared.study.name

    def run(self, *, jobs: int = 1) -> Path:
        """Run what is missing, `jobs` segments at a time, and write the report; returns the report's path."""
        refuse_undeclared(self.prepared)
        run_study(self.prepared, self.out, jobs=jobs)
        return self.report()

    def report(self) -> Path:
        """Write the report of what is there so far; returns its path."""
        return build_report(self.directory)


def draw_prediction(image: str | Path | np.ndarray, found: ImagePrediction) -> Image.Image:
    """A picture of an image with what was found on it; a notebook shows it."""
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    return draw(pixels, found.boxes, found.labels, found.category_ids, scores=found.scores.tolist(), masks=found.masks)
