"""Files beside the rows and checkpoints of a run, as typed records. Imports no torch: reports read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

FORMAT = 1  # of all files in a run's directory; segment.json states it, and those written before it did not
Value = TypeVar("Value")
SEGMENT_FILE, ENVIRONMENT_FILE, AUDIT_FILE = "segment.json", "environment.json", "audit.json"


class SpanFacts(Struct, forbid_unknown_fields=True):
    """`lineage.Span.facts`."""

    schedule: dict[str, Any]
    stop: int
    parent: str | None
    is_trunk: bool
    carries: bool = False


class RunFacts(Struct, forbid_unknown_fields=True, kw_only=True):
    """segment.json: the data of a run, its span, its lineage if it is a trunk, and its place in a study's plan."""

    format: Annotated[int, Meta(ge=1, le=FORMAT)] = 1
    num_images: int
    num_val_images: int | None = None
    classes: dict[str, list[Any]]
    fingerprint: str
    span: SpanFacts | None = None
    trunk: tuple[str, str] | None = None
    notes: list[str] = []
    overlap: int = 0  # validation images that are training images too
    weights_cost: dict[str, float] | None = None  # COUNTERS and seconds of the run that made the start's weights
    name: str | None = None
    kind: Literal["pretrain", "trunk", "tail"] | None = None
    arm: str | None = None
    fraction: float | None = None
    seed: int | None = None
    schedule: str | None = None
    start: int | None = None
    stop: int | None = None
    parent: str | None = None
    weights_from: str | None = None


class Environment(Struct, forbid_unknown_fields=True, kw_only=True):
    """environment.json: machine and versions of a run; null for what is not there or was not written yet."""

    headstart: str
    python: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    machine: str | None = None
    processor: str | None = None
    features: str | None = None
    device: str | None = None
    cpus: int | None = None
    threads: int | None = None
    gpu: str | None = None
    processes: int = 1


class ByErrorType(Struct, Generic[Value], forbid_unknown_fields=True):
    """A value for each type of errors."""

    classification: Value
    localisation: Value
    both: Value
    duplicate: Value
    background: Value
    missed: Value


class StoredErrors(Struct, forbid_unknown_fields=True):
    """One kind of errors-STEP.json: `metrics.errors.ErrorTypes`; null for what is undefined."""

    ap50: float | None
    counts: ByErrorType[int]
    gains: ByErrorType[float | None]


ErrorsOfKinds = dict[Literal["box", "mask"], StoredErrors]  # the content of errors-STEP.json


def torn_files(directory: Path) -> dict[Path, str]:
    """Files of a run that are no JSON, as a crash of the machine leaves them, each with its fault; none where absent.

    A file that is whole but not what it should be stays for its reader to refuse.
    """
    torn = {}
    for path in (directory / name for name in (SEGMENT_FILE, ENVIRONMENT_FILE, AUDIT_FILE)):
        try:
            msgspec.json.decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); nothing was changed") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            torn[path] = f"{path}: is not JSON ({error})"
    return torn
