"""Costs against a count made cell by cell, the paper's bars, and known public recipes."""

import pytest

from headstart.report.cost import Cost, cell_costs, counters, public_cost, segment_costs
from headstart.report.references import sample_figure
from headstart.study.plan import expand, schedule_names
from headstart.study.spec import parse_study
from headstart.weights.public import find_training, trainings
from schedules import make_schedules

STUDY = {
    "name": "s",
    "recipe": "r",
    "arms": {"scratch": {}, "pretrained": {"start.weights": "pretrain:shapes"}},
    "schedules": ["1x", "2x", "3x"],
    "seeds": 2,
    "pretrain": {"shapes": {"recipe": "p", "set": {"seed": 0, "data.fraction": 1.0}}},
}
FLOPS = {"scratch": 10.0, "pretrained": 8.0, "pretrain:shapes": 2.0}


def row(step, kind="train", flops=1.0):
    """A row of a lineage that sees 4 images, 12 instances and 400 pixels a step, 0.5 s each; `flops` an image."""
    seconds = {"train": 0.5 * step, "eval": 0.1 * step, "other": 0.01 * step}
    return {
        "kind": kind,
        "step": step,
        "images": 4 * step,
        "instances": 12 * step,
        "pixels": 400 * step,
        "flops": 4 * step * flops,
        "seconds": seconds,
    }


def flops_key(segment):
    return "pretrain:shapes" if segment.kind == "pretrain" else segment.arm


@pytest.fixture(name="parts")
def _parts():
    study = parse_study(STUDY, source="s")
    schedules = make_schedules(schedule_names(study), base=90, base_rate=0.1, warmup=0, warmup_from=1.0)
    plan = expand(study, schedules, pretrain_steps={"shapes": 40})
    segments = plan.segments
    rows = {
        s.name: [
            {"kind": "start", "step": s.start},
            row(s.start + 1, flops=FLOPS[flops_key(s)]),
            row(s.stop, flops=FLOPS[flops_key(s)]),
            {"kind": "end", "step": s.stop},
        ]
        for s in segments
    }
    return plan, segments, rows


def test_a_segment_adds_its_own_steps_only(parts):
    _, segments, rows = parts
    costs = segment_costs(segments, rows)
    for segment in segments:
        steps, cost = segment.stop - segment.start, costs[segment.name]
        assert (cost.images, cost.instances, cost.pixels) == (4 * steps, 12 * steps, 400 * steps)
        assert cost.flops == 4 * steps * FLOPS[flops_key(segment)]
        assert cost.seconds == pytest.approx(0.61 * steps)


def test_a_segment_that_has_just_begun_or_is_too_short_for_a_row_adds_nothing(parts):
    _, segments, rows = parts
    early = next(s for s in segments if s.kind == "trunk" and s.parent)
    after = next(s for s in segments if s.parent == early.name)
    costs = segment_costs(segments, rows | {early.name: rows[early.name][:1]})
    assert costs[early.name].images == costs[early.name].flops == costs[early.name].seconds == 0
    assert costs[after.name].images == 4 * (after.stop - early.start), "what follows is not lost"


def test_alone_is_the_cell_and_as_spent_adds_up_to_the_bill(parts):
    plan, segments, rows = parts
    costs = segment_costs(segments, rows)
    cells = cell_costs(plan, costs, uses={"pretrained": 10})
    assert {cell.cell.name: cell.alone.images for cell in cells} == {c.name: 4 * c.total for c in plan.cells}
    for name in ("images", "instances", "pixels", "flops", "seconds_train", "seconds"):
        bill = sum(getattr(cost, name) for cost in costs.values())
        assert sum(getattr(cell.whole_as_spent, name) for cell in cells) == pytest.approx(bill)
    assert sum(cell.as_spent.images for cell in cells) == 4 * plan.steps_shared


def test_pretraining_is_in_the_whole_but_not_in_the_pocket(parts):
    plan, segments, rows = parts
    costs = segment_costs(segments, rows)
    for cell in cell_costs(plan, costs, uses={"pretrained": 10}):
        extra = 4 * 40 if cell.cell.arm == "pretrained" else 0
        assert cell.whole.images - cell.alone.images == pytest.approx(extra / 10)
        assert cell.pretraining_spent.images == pytest.approx(extra / 6)  # six cells began with these weights
    public = cell_costs(plan, costs, public={"scratch": Cost(images=1e6)}, uses={"scratch": 4})
    first = next(cell for cell in public if cell.cell.arm == "scratch")
    assert first.whole.images == first.alone.images + 250_000
    assert first.pretraining_spent == Cost()


def test_a_shared_trunk_is_split_between_the_cells_that_used_it(parts):
    plan, segments, rows = parts
    cells = {c.cell.name: c for c in cell_costs(plan, segment_costs(segments, rows))}
    # trunk 0-60 for three, 60-120 for two, 120-210 for one; tails of 30, 60 and 60 steps
    assert cells["scratch-f1-s0-1x"].as_spent.images == pytest.approx(4 * (20 + 30))
    assert cells["scratch-f1-s0-2x"].as_spent.images == pytest.approx(4 * (20 + 30 + 60))
    assert cells["scratch-f1-s0-3x"].as_spent.images == pytest.approx(4 * (20 + 30 + 90 + 60))


def test_unfinished_and_unbegun_segments_count_what_they_did(parts):
    _, segments, rows = parts
    name = "scratch-f1-s0-3x-210-270"
    rows[name] = [row(215)]
    rows["pretrained-f1-s0-trunk-0-60"] = []
    costs = segment_costs(segments, rows)
    assert costs[name].images == 20
    assert costs["pretrained-f1-s0-trunk-0-60"] == Cost()
    assert counters([]) == Cost()
    old = counters([{key: value for key, value in row(9).items() if key != "flops"}])  # of a run that counted none
    assert old.images == 36 and old.flops != old.flops


def test_counters_that_fall_are_refused_and_clocks_that_fall_are_not(parts):
    _, segments, rows = parts
    name = "scratch-f1-s0-1x-60-90"
    rows[name] = [row(59)]
    with pytest.raises(ValueError, match=f"segment {name}: images end at 236, expected at least the 240"):
        segment_costs(segments, rows)
    rows[name] = [{**row(90), "seconds": {"train": 1.0, "eval": 0.0, "other": 0.0}}]
    assert segment_costs(segments, rows)[name].seconds == 0


def test_the_bars_of_the_papers_sample_figure():
    bars = sample_figure()
    rounded = {name: tuple(float(f"{value:.3g}") for value in pair) for name, pair in bars.items()}
    assert rounded == {"images": (1.31e8, 8.64e6), "instances": (1.48e8, 6.05e7), "pixels": (9.49e12, 9.21e12)}
    assert bars["images"] == (128_000_000 + 2_880_000, 8_640_000)
    ratios = [tuned / scratch for tuned, scratch in bars.values()]
    assert ratios == pytest.approx([15.1, 2.45, 1.03], rel=5e-3)


def test_public_weights_have_a_source_and_the_cost_of_what_they_build_on():
    assert all(training.source for training in trainings().values())
    imagenet = public_cost(find_training("torchvision-resnet-v1"))
    assert imagenet.images == 1_281_167 * 90 and imagenet.pixels == imagenet.images * 224**2
    detector = public_cost(find_training("torchvision-maskrcnn-resnet50-v1"))
    assert detector.images == imagenet.images + 117_266 * 26
    assert public_cost(find_training("moco-v2-200")).images == 2 * 200 * 1_281_167
    assert imagenet.flops != imagenet.flops  # not known, and said so
