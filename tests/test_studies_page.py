"""The tables of docs/results.md are what their script makes of the kept studies, and these what it reads from rows."""

import json
from math import exp

import numpy as np
import pytest
from record import rewritten
from studies import (
    BEGIN,
    EARLIER_FILE,
    END,
    cell_text,
    curve_steps,
    earlier,
    finding,
    kept_of,
    read_kept,
    render,
    texts,
)

from headstart.report.references import earlier_study
from headstart.study.folder import read_study_folder
from headstart.study.sections import EarlierStudy
from study_folder import box_ap, build_study


def test_the_tables_are_those_of_the_kept_studies():
    for path, text in texts(read_kept()).items():
        page = path.read_text(encoding="utf-8")
        assert rewritten(page, BEGIN, END, text) == page, f"{path.name}: run `python benchmarks/studies.py`"


def test_an_earlier_study_of_reports_is_a_kept_one():
    kept = read_kept()
    assert earlier(kept) == EARLIER_FILE.read_text(encoding="utf-8"), "run `python benchmarks/studies.py`"
    for name in EarlierStudy.__args__:
        found, cells = earlier_study(name), kept[name]["figures"]["cells"]
        ends = [cell["values"][str(cell["total"])] for cell in cells if cell["fraction"] == 1.0]
        read = [score for scores in found.scores.values() for seeds in scores.values() for score in seeds]
        assert sorted(read) == sorted(ends) and len(found.sentences) == 2
        assert list(found.places.values()) == sorted(found.places.values()) and found.places[min(found.places)] == 0.0


def test_a_study_is_kept_and_shown_as_its_rows_say(tmp_path):
    path = build_study(tmp_path, seeds=2, schedules=("2x", "3x"), fractions=(1.0,), pictures=False)
    kept = kept_of(read_study_folder(path), "headstart study run made-up")
    kept = json.loads(json.dumps(kept))
    cells = {(cell["arm"], cell["schedule"], cell["seed"]): cell for cell in kept["figures"]["cells"]}
    assert len(cells) == 8 and kept["figures"]["planned"] == 8
    for (arm, _, seed), cell in cells.items():
        *before, end = (int(step) for step in cell["values"])
        assert end == cell["total"] and before == list(range(100, end, 100))[: len(before)]
        assert cell["values"][str(end)] == pytest.approx(box_ap(arm, 1.0, seed, end, True))
    text = render({"made-up": kept})
    seconds = np.mean([cells["scratch", "3x", seed]["seconds"] for seed in (0, 1)])
    ends = [cells["scratch", "3x", seed]["values"]["900"] for seed in (0, 1)]
    assert f"| {cell_text(ends)} | {seconds:,.0f} |\n" in text and "800 images, 3x (2 seeds), at steps" in text
    assert "`headstart study run made-up`" in text and kept["made"]["processor"] in text
    assert all(part in text for part in finding(kept).split("\n\n"))
    page = rewritten(f"before\n{BEGIN}old\n{END}after\n", BEGIN, END, text)
    assert page.startswith(f"before\n{BEGIN}") and page.endswith(f"{END}after\n") and "old" not in page


def test_cells_without_a_score_are_shown_without(tmp_path):
    """The variant by which the rule decides is evaluated for seed 1 of scratch and seed 0 of pretrained alone."""
    patch = {"evaluate.tta.enabled": True}
    rule = {"metric": "tta:box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01}
    settings = {"rule": rule, "also_evaluate": {"tta": patch}}
    path = build_study(tmp_path, seeds=2, schedules=("2x",), fractions=(1.0,), pictures=False, settings=settings)
    row = {"kind": "eval", "variant": "tta", "patch": patch, "step": 600, "split": "val"}
    for name, ap in (("scratch-f1-s1", 0.4), ("pretrained-f1-s0", 0.3), ("scratch-f1-s0", None)):
        (tail,) = path.glob(f"segments/{name}-2x-*")
        told = json.dumps(row | {"metrics": {"box": {"AP": ap}}})
        (tail / "variants.jsonl").write_text(told + "\n")
    text = render({"made-up": kept_of(read_study_folder(path), "made-up")})
    assert "| scratch | 40.0 |" in text and "| pretrained | 30.0 |" in text and "difference" not in text


def test_scores_of_all_kinds_and_the_last_loss_are_kept_rounded(tmp_path):
    options = {"schedules": ("2x", "3x"), "fractions": (1.0,), "pictures": False, "log_every": 40}
    patch = {"evaluate.tta.enabled": True}
    path = build_study(tmp_path, settings={"also_evaluate": {"tta": patch}}, **options)
    read = read_study_folder(path)
    (cell,) = [cell for cell in read.plan.cells if (cell.arm, cell.schedule) == ("scratch", "3x")]
    metrics = {"box": {"AP": 0.1234567, "AP50": None}, "mask": {"AP": 0.2}}
    row = {"kind": "eval", "variant": "tta", "patch": patch, "step": 900, "split": "val", "metrics": metrics}
    (read.tail(cell).directory / "variants.jsonl").write_text(json.dumps(row) + "\n")
    kept = kept_of(read_study_folder(path), "made-up")["figures"]["cells"]
    (found,) = [each for each in kept if (each["arm"], each["schedule"]) == ("scratch", "3x")]
    assert found["metrics"].pop("tta:box.AP") == {"900": 0.12346} and found["metrics"].pop("tta:mask.AP") == {
        "900": 0.2
    }
    factors = {"box.AP": 1, "box.AP50": 1.6, "box.AP75": 1.05, "mask.AP": 0.9}  # of the fixture
    assert found["metrics"] == {
        name: {step: round(value * factor, 5) for step, value in found["values"].items()}
        for name, factor in factors.items()
    }
    losses = [0.3 + 2 * exp(-step / 300) for step in (840, 880, 900)]
    assert found["loss"] == round((30 * losses[0] + 40 * losses[1] + 20 * losses[2]) / 90, 5)


def test_an_unfinished_study_keeps_what_is_finished(tmp_path):
    options = {"schedules": ("2x", "3x"), "fractions": (1.0,), "pictures": False}
    with pytest.raises(ValueError, match="no cell is finished, expected at least one"):
        kept_of(read_study_folder(build_study(tmp_path / "a", num_begun=1, **options)), "a")
    some = kept_of(read_study_folder(build_study(tmp_path / "b", num_begun=4, **options)), "b")
    assert 0 < len(some["figures"]["cells"]) < 4
    assert f"{len(some['figures']['cells'])} of 4 cells had finished" in render({"b": some})


def test_many_steps_are_thinned_and_the_last_stays():
    cells = [{"values": dict.fromkeys(map(str, range(80, 1000, 80)), 0.1)}]
    assert curve_steps(cells) == [160, 320, 480, 640, 800, 960]
    assert curve_steps([{"values": {}}]) == [] and cell_text([]) == "-"
    assert cell_text([0.1]) == "10.0" and cell_text([0.1, 0.2]) == "15.0 ± 7.1"
