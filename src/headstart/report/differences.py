"""Differences between the arms of a study: of their recipes (plan.json), and of the models and data of their runs.

Models and data are compared by the first run of each arm: number of parameters, norms, trained parts, data digest.
"""

from __future__ import annotations

from typing import Any

from headstart.study.results import Run, StudyFolder
from headstart.training.stored import AUDIT_FILE, SEGMENT_FILE, RunFacts
from headstart.weights.audits.record import Audit

# For each property in which runs may differ: beginnings of the fields that an arm must declare for it.
PARAMETERS, TRAINED, NORM, DATA = "parameters", "trained parameters", "norm", "content of the data"
EFFORT = ("trials", "steps", "note")
_DECLARED_BY = {
    PARAMETERS: ("model",),
    NORM: ("model", "start.freeze"),
    TRAINED: ("model", "start"),
    DATA: ("data", "input", "model"),  # a keypoint head takes only images with keypoints
}


def difference_rows(folder: StudyFolder) -> list[dict[str, Any]]:
    """Rows of the difference sheet: field, values by arm, and whether an arm declares it."""
    return [*folder.differences, *(row for row in measured(folder) if len(set(row["values"].values())) > 1)]


def starts_differ(folder: StudyFolder) -> bool:
    """True if the two arms of the question differ in a field of the start, unlike those of a study of precision."""
    starts = [row["values"] for row in folder.differences if str(row["field"]).startswith("start.")]
    return any(values.get(folder.baseline) != values.get(folder.candidate) for values in starts)


def compared(folder: StudyFolder) -> list[dict[str, Any]]:
    """Properties compared between the arms' runs and equal; empty before two arms have begun."""
    rows = [row for row in measured(folder) if len(set(row["values"].values())) == 1]
    return [{"field": row["field"], "value": next(iter(row["values"].values()))} for row in rows]


def tuning_rows(folder: StudyFolder) -> list[dict[str, Any]]:
    """Tuning effort of each arm, as declared in the study file; None where it is not."""
    declared = folder.study.tuning
    return [{"arm": arm, **{name: getattr(declared.get(arm), name, None) for name in EFFORT}} for arm in folder.arms]


def undeclared(folder: StudyFolder) -> tuple[str, ...]:
    """Fields in which arms differ without declaring it: they void a comparison."""
    return tuple(str(row["field"]) for row in difference_rows(folder) if not row.get("declared"))


def measured(folder: StudyFolder) -> list[dict[str, Any]]:
    """Properties of an audited run of each arm, a row a property; none before two arms have begun.

    The runs are of one seed, the first that all these arms have begun. Each seed may have images of its own
    (data.fraction_seed): without a common seed the data are not compared.
    """
    begun = {arm: own for arm in folder.arms if (own := _audited(folder, arm))}
    if len(begun) < 2:
        return []
    shared = [seed for seed in folder.seeds if all(seed in own for own in begun.values())]
    facts = {arm: _facts_of(*own[shared[0] if shared else min(own)]) for arm, own in begun.items()}
    rows, given = [], {name for arm in folder.arms for name in folder.study.patch_of(arm)}
    for field in dict.fromkeys(field for own in facts.values() for field in own if shared or field != DATA):
        values = {arm: str(own.get(field, "none")) for arm, own in facts.items()}
        declared = any(f"{name}.".startswith(f"{own}.") for name in given for own in _DECLARED_BY[field])
        rows.append({"field": field, "values": values, "declared": declared})
    return rows


def _audited(folder: StudyFolder, arm: str) -> dict[int, tuple[Run, Audit]]:
    """The first run with an audit of each seed of an arm, at the largest fraction."""
    found: dict[int, tuple[Run, Audit]] = {}
    for run in folder.runs.values():
        own = run.segment
        is_own = own.kind != "pretrain" and own.arm == arm and own.fraction == folder.fractions[0] and run.directory
        if is_own and own.seed not in found and (audit := run.fact(AUDIT_FILE, Audit)):
            found[own.seed] = run, audit
    return found


def _facts_of(run: Run, audit: Audit) -> dict[str, str]:
    frozen = [row.group for row in audit.rows if row.training != "trains"]
    facts = {
        PARAMETERS: f"{sum(row.num_params for row in audit.rows):,}",
        TRAINED: f"all but {', '.join(frozen)}" if frozen else "all",
        NORM: "; ".join(dict.fromkeys(row.norm for row in audit.rows)),
    }
    segment = run.fact(SEGMENT_FILE, RunFacts)
    if segment and segment.fingerprint:
        facts[DATA] = f"{segment.fingerprint[:12]} ({segment.num_images} images)"
    return facts
