"""Branches of another arm: where they leave its trunk, what they take over, and that nothing else changes."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from headstart.recipe.load import stored_recipe
from headstart.recipe.schedule import Schedule
from headstart.report.build import build_report
from headstart.report.cost import study_costs
from headstart.study.folder import read_study_folder
from headstart.study.forecast import Load, cell_rows
from headstart.study.plan import expand, schedule_names
from headstart.study.prepare import prepare, refuse_undeclared
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.tasks import make_task
from headstart.training.lineage import Span, run_digest
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.training.start import prepare_branch
from headstart.training.verify import verify
from headstart.weights import checkpoint
from killed import Killed
from schedules import make_schedules
from tiny import ONCE, outcome, tiny_recipe, tiny_study, without_clock

COCO = {"base": 90_000, "base_rate": 0.02, "warmup": 500, "warmup_from": 1 / 3}
LATE = {"branch_of": "scratch", "last": "270k steps", "model.box.class_agnostic": True}
E6 = {  # the paper's Cascade with scale augmentation: 9x from scratch, the extra heads for the last 270k steps
    "name": "e6",
    "recipe": "base",
    "arms": {"scratch": {}, "scratch_late": LATE, "pretrained": {"start.kind": "backbone", "start.weights": "w.pt"}},
    "schedules": {"scratch": ["9x"], "scratch_late": ["9x"], "pretrained": ["6x"]},
}


def plan_of(study, steps=270_000, numbers=COCO):
    study = parse_study(study, source="study.yaml")
    schedules = make_schedules(schedule_names(study), **numbers)
    return expand(study, schedules, branch_steps={arm: steps for arm in study.arms if study.branch_of(arm)})


def test_the_papers_late_cascade_shares_540k_steps():
    plan = plan_of(E6)
    assert [(s.name, s.parent, s.steps) for s in plan.segments] == [
        ("scratch-f1-s0-trunk-0-540000", None, 540_000),
        ("scratch-f1-s0-trunk-540000-750000", "scratch-f1-s0-trunk-0-540000", 210_000),
        ("scratch-f1-s0-9x-750000-810000", "scratch-f1-s0-trunk-540000-750000", 60_000),
        ("pretrained-f1-s0-trunk-0-480000", None, 480_000),
        ("pretrained-f1-s0-6x-480000-540000", "pretrained-f1-s0-trunk-0-480000", 60_000),
        ("scratch_late-f1-s0-9x-540000-810000", "scratch-f1-s0-trunk-0-540000", 270_000),
    ]
    late = next(cell for cell in plan.cells if cell.arm == "scratch_late")
    assert late.segments == ("scratch-f1-s0-trunk-0-540000", "scratch_late-f1-s0-9x-540000-810000")
    assert late.total == 810_000
    assert (plan.steps_alone, plan.steps_shared) == (2_160_000, 1_620_000)


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_cell_of_a_branch_is_one_chain_from_step_0_to_its_end(seeds):
    arms = {
        "late": {"branch_of": "scratch", "last": "180 steps", "train.rate": 0.1},
        "scratch": {},
    }  # parent listed last
    study = {"name": "s", "recipe": "base", "arms": arms, "schedules": ["3x", "4x", "6x"], "seeds": seeds}
    plan = plan_of(study, 180, {**COCO, "base": 90, "warmup": 5})
    by_name = {segment.name: segment for segment in plan.segments}
    order = list(by_name)
    for cell in plan.cells:
        chain = [by_name[name] for name in cell.segments]
        assert chain[0].start == 0 and chain[-1].stop == cell.total and chain[-1].arm == cell.arm
        assert [(s.name, s.stop) for s in chain[:-1]] == [(s.parent, s.start) for s in chain[1:]]
        assert all(order.index(s.parent) < order.index(s.name) for s in chain[1:])
        assert {s.arm for s in chain[:-1]} == {"scratch"} and {s.seed for s in chain} == {cell.seed}
        if cell.arm == "late":
            assert chain[-1].steps == 180
    assert {s.name for s in plan.segments} == {name for cell in plan.cells for name in cell.segments}


def test_a_branch_costs_its_parents_steps_and_then_its_own():
    loads = {
        arm: Load(batch=16, num_images={1.0: 160}, seconds_per_step=seconds, seconds_per_eval_image=1.0,
                  num_eval_images=10, eval_every=90_000)
        for arm, seconds in (("scratch", 1.0), ("scratch_late", 3.0), ("pretrained", 1.0))
    }  # fmt: skip
    rows = {row["arm"]: row for row in cell_rows(plan_of(E6), loads)}
    assert rows["scratch_late"]["seconds"] == 540_000 + 3 * 270_000 + 9 * 10
    assert rows["scratch"]["seconds"] == 810_000 + 9 * 10
    assert rows["scratch_late"]["images"] == rows["scratch"]["images"] == 16 * 810_000
    assert rows["scratch_late"]["epochs"] == pytest.approx(rows["scratch"]["epochs"])


def test_a_branch_is_its_parents_recipe_with_its_own_patch_on_top():
    arms = {
        "a": {"start": {"kind": "backbone", "weights": "pretrain:p"}, "train.rate": 0.1},
        "b": {"branch_of": "a", "last": "3x", "train": {"rate": 0.2}, "seed": 1},
    }
    study = parse_study(
        {
            "name": "s",
            "recipe": "r",
            "arms": arms,
            "schedules": ["6x"],
            "pretrain": {"p": {"recipe": "q", "set": ONCE}},
        },
        source="s",
    )
    assert study.patch_of("b") == {
        "start.kind": "backbone", "start.weights": "pretrain:p", "train.rate": 0.2, "seed": 1,
    }  # fmt: skip
    assert study.pretraining_of("b") == "p" and study.branch_of("a") is None
    steps = {"pretrain_steps": {"p": 1}, "branch_steps": {"b": 270_000}}
    plan = expand(study, make_schedules(["6x"], **COCO), **steps)
    assert {s.weights_from for s in plan.segments if s.kind != "pretrain"} == {"pretrain-p"}


BAD = [
    ({"branch_of": "scratch", "train.rate": 1}, "arms.late: branch_of is given without last, expected both"),
    ({"last": "3x", "train.rate": 1}, "arms.late: last is given without branch_of, expected both"),
    ({**LATE, "branch_of": "scrath"}, "arms.late.branch_of: arm 'scrath' is not known, did you mean 'scratch'"),
    ({**LATE, "branch_of": "late"}, "arms.late.branch_of: arm 'late' is not known"),
    ({**LATE, "branch_of": "other"}, "arms.late.branch_of: 'other' is a branch itself"),
    ({**LATE, "last": "270k"}, "arms.late.last is '270k', expected a number with a unit"),
    ({**LATE, "last": 0}, "arms.late.last is 0, expected more than nothing"),
    ({**LATE, "last": "threex"}, "schedule 'threex' is not known"),
    ({**LATE, "start.weights": "w.pt"}, "arms.late.start.weights: a branch starts where arm 'scratch' is"),
    ({"branch_of": "scratch", "last": "3x"}, "arms.late: changes nothing of arm 'scratch'"),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_bad_branches_are_refused_with_one_line(entry, message):
    arms = {"scratch": {}, "late": entry, "other": {**LATE, "train.rate": 0.1}}
    with pytest.raises(ValueError, match=message) as error:
        parse_study({"name": "s", "recipe": "r", "arms": arms, "schedules": ["9x"]}, source="study.yaml")
    assert str(error.value).startswith("study.yaml: ") and "\n" not in str(error.value)


def test_a_branch_cannot_be_searched():
    search = {"arm": "scratch_late", "grid": {"train.rate": [0.1, 0.2]}, "schedule": "9x"}
    with pytest.raises(ValueError, match=r"search\.arm: 'scratch_late' is a branch, expected an arm with a start"):
        parse_study({**E6, "search": search}, source="study.yaml")


def test_a_branch_needs_a_shared_trunk_that_passes_its_step_at_the_constant_rate():
    with pytest.raises(ValueError, match=r"arms\.scratch_late\.branch_of: share is false"):
        plan_of({**E6, "share": False})
    schedules = {**E6["schedules"], "scratch": ["6x"]}
    begin = r"arms\.scratch_late\.last: the last 270,000 of the 810,000 steps of 9x begin at step 540,000"
    where = "expected a step from 500 to 480,000: the trunk of 'scratch' at fraction 1 has its constant rate"
    with pytest.raises(ValueError, match=f"{begin}, {where}"):
        plan_of({**E6, "schedules": schedules})
    with pytest.raises(ValueError, match=r"begin at step 780,000, .* and 9x drops at 750,000"):
        plan_of(E6, 30_000)
    for steps in (810_000, 809_900, 900_000):
        with pytest.raises(ValueError, match="expected a step from 500 to 750,000"):
            plan_of(E6, steps)
    early = Schedule(total=180, warmup=6, warmup_from=0.1, base_rate=0.02)
    with pytest.raises(ValueError, match="schedules: 9x has no drop"):
        expand(parse_study(E6, source="s"), {"9x": early, "6x": early}, branch_steps={"scratch_late": 100})


SCHEDULE = Schedule(total=12, warmup=0, warmup_from=1, base_rate=1)  # of the throw-away optimizer
# The further stages are new, and class-agnostic boxes have another shape.
CHANGES = {"model.cascade.enabled": True, "model.box.class_agnostic": True}
NEW = tuple(
    f"cascade.{stage}.{layer}.{part}"
    for stage in (0, 1)
    for layer in ("fcs.0", "classify", "regress")
    for part in ("weight", "bias")
)
RESHAPED = ("box_head.regress.weight", "box_head.regress.bias")


def branched(data_root, changes=CHANGES, **more):
    arms = {"scratch": {}, "late": {"branch_of": "scratch", "last": "4 steps", **changes}}
    return tiny_study(data_root, arms=arms, pretrain={}, schedules=["3x"], **more)


def run(study, out, **options):
    return run_study(prepare(parse_study(study, source="tiny")), out, **options)


@pytest.fixture(scope="module")
def study(data_root, tmp_path_factory):
    """A branch of a tiny arm, run undisturbed."""
    return run(branched(data_root), tmp_path_factory.mktemp("branch"))


LATE_NAME, TRUNK, TAIL = "late-f1-s0-3x-8-12", "scratch-f1-s0-trunk-0-8", "scratch-f1-s0-3x-9-12"


def test_what_fits_is_carried_over_with_its_momentum_and_the_rest_is_as_built(study, data_root):
    found = outcome(study)
    path = checkpoint.path_of(study / found[TRUNK][0], 8)
    parent = checkpoint.load(path)
    recipe = stored_recipe(checkpoint.load(checkpoint.path_of(study / found[LATE_NAME][0], 12))["recipe"], str(path))
    task, built = make_task(recipe), make_task(recipe).model.state_dict()
    start, audit = prepare_branch(task, recipe, SCHEDULE, checkpoint.StartPoint("branch", path, 8, parent))
    assert (start.step, start.state["counters"], start.state["window"]) == (8, parent["counters"], {})
    assert audit.new == NEW and tuple(audit.reshaped) == RESHAPED and audit.left_out == ()
    assert audit.reshaped["box_head.regress.bias"] == (tuple(parent["model"]["box_head.regress.bias"].shape), (4,))
    momentum, before = momentum_of(start.state), momentum_of(parent)
    assert set(momentum) == {name for name, _ in task.model.named_parameters()}
    for name, value in start.state["model"].items():
        own = name in NEW + RESHAPED
        assert torch.equal(value, built[name] if own else parent["model"][name])
        assert torch.equal(task.model.state_dict()[name], value)
        assert not momentum[name].any() if own else torch.equal(momentum[name], before[name]) and before[name].any()
    written = json.loads((study / found[LATE_NAME][0] / "audit.json").read_text())
    assert written["new"] == list(NEW) and list(written["reshaped"]) == list(RESHAPED)
    assert written["start"] == "branch" and written["file"].endswith(f"{found[TRUNK][0]}/checkpoints/00000008.pt")
    assert f"{len(built) - 14} tensors carried over" in written["notes"][0]


def momentum_of(state):
    groups = state["optimizer"]["param_groups"]
    names = {index: name for group in groups for index, name in zip(group["params"], group["param_names"])}
    return {names[index]: entry["momentum_buffer"] for index, entry in state["optimizer"]["state"].items()}


def test_the_first_step_of_a_branch_is_made_by_its_own_model_and_counts_on(study):
    rows = read_rows(study / outcome(study)[LATE_NAME][0] / "rows.jsonl")
    assert (rows[0]["source"], rows[0]["step"]) == ("branch", 8)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [9, 12]
    first = next(row for row in rows if row["kind"] == "train")
    assert first["images"] == 2 * 9, "images are counted on from the parent's"
    assert "box_delta_3" in first["losses"] and "box_delta" not in first["losses"]


def test_a_branch_that_changes_nothing_that_counts_ends_like_its_parent(data_root, tmp_path):
    """Evaluation in other batches: all tensors carried, so the same weights, bit for bit, as without a branch."""
    directory = run(branched(data_root, {"evaluate.batch": 1}), tmp_path)
    found = outcome(directory)
    assert found[LATE_NAME][1] == found[TAIL][1]


def test_the_parent_is_what_it_is_without_a_branch(study, data_root, tmp_path):
    straight = train(tiny_recipe(data_root, train__schedule="3x"), tmp_path)
    assert read_rows(straight.directory / "rows.jsonl")[-1]["hash"] == outcome(study)[TAIL][1]


@pytest.mark.parametrize("fatal", [9, 11])
def test_killed_inside_the_branch_and_run_again_gives_the_same(study, data_root, tmp_path, fatal, monkeypatch):
    """Before its first checkpoint (at 9), and after it."""
    monkeypatch.setattr(checkpoint, "cost_of", lambda weights: {"images": 16.0})
    shutil.copytree(study, tmp_path / study.name)
    shutil.rmtree(tmp_path / study.name / outcome(study)[LATE_NAME][0])

    def progress(segment, step, values):
        assert segment.name == LATE_NAME
        if step == fatal:
            raise Killed

    with pytest.raises(Killed):
        run(branched(data_root), tmp_path, progress=progress)
    directory = run(branched(data_root), tmp_path)
    assert outcome(directory) == outcome(study)
    late = directory / outcome(directory)[LATE_NAME][0]
    assert json.loads((late / "audit.json").read_text())["new"] == list(NEW)
    assert json.loads((late / "segment.json").read_text())["weights_cost"] == {"images": 16.0}


def test_a_branch_can_be_verified(study, tmp_path):
    run = study / outcome(study)[LATE_NAME][0]
    assert verify(run).differences == () and verify(run).start == 9
    checkpoint.path_of(run, 9).rename(tmp_path / "moved.pt")  # with one checkpoint, from its parent's end
    result = verify(run)
    (tmp_path / "moved.pt").rename(checkpoint.path_of(run, 9))
    assert result.differences == () and result.start == 8


def test_a_cascade_trains_from_step_0_and_resumes_exactly(data_root, tmp_path):
    recipe = tiny_recipe(data_root, **{name.replace(".", "__"): value for name, value in CHANGES.items()})
    whole = train(recipe, tmp_path / "whole")

    def progress(step, values):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path / "torn", progress=progress)
    resumed = train(recipe, tmp_path / "torn")
    rows, others = (without_clock(read_rows(result.directory / "rows.jsonl")) for result in (whole, resumed))
    assert [row for row in rows if row["kind"] != "start"] == [row for row in others if row["kind"] != "start"]
    assert "box_class_3" in rows[1]["losses"] and whole.metrics["mask"].keys() == whole.metrics["box"].keys()
    assert "cascade" in {row["group"] for row in json.loads((whole.directory / "audit.json").read_text())["rows"]}


def test_the_digest_of_a_branch_holds_its_recipe_and_its_parent(study):
    run = study / outcome(study)[LATE_NAME][0]
    kept = checkpoint.load(checkpoint.path_of(run, 12))
    recipe, span = stored_recipe(kept["recipe"], str(run)), Span.from_facts(kept["span"], study)
    assert span.partial_restore and span.parent == checkpoint.path_of(study / outcome(study)[TRUNK][0], 8)
    fingerprint = make_task(recipe).fingerprint
    assert run.name == f"{recipe.name}-{run_digest(recipe, fingerprint, None, span)}"
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"weight_decay": 0.5})})
    moved = replace(span, parent=checkpoint.path_of(study / "scratch-f1-s0-trunk-0-8-000000000000", 8))
    pairs = ((recipe, span), (other, span), (recipe, moved))
    assert len({run_digest(own, fingerprint, None, part) for own, part in pairs}) == 3


def test_new_tensors_that_are_frozen_stop_a_branch(study, data_root):
    path = checkpoint.path_of(study / outcome(study)[TRUNK][0], 8)
    recipe = tiny_recipe(data_root, model__backbone__depth=[2, 1, 1, 1], start__freeze="none")
    start = checkpoint.StartPoint("branch", path, 8, checkpoint.load(path))
    frozen = recipe.model_copy(update={"start": recipe.start.model_copy(update={"freeze": "stage1"})})
    for chosen, error in ((recipe, None), (frozen, r"initialisation audit: .*layer1\.1.* are random and frozen")):
        with pytest.raises(ValueError, match=error) if error else nullcontext():
            prepare_branch(make_task(chosen), chosen, SCHEDULE, start)


def test_a_branch_cannot_change_how_images_are_normalised(study, data_root):
    path = checkpoint.path_of(study / outcome(study)[TRUNK][0], 8)
    recipe = tiny_recipe(data_root, input__mean=[1.0, 2.0, 3.0])
    start = checkpoint.StartPoint("branch", path, 8, checkpoint.load(path))
    with pytest.raises(ValueError, match=r"initialisation audit: input\.mean"):
        prepare_branch(make_task(recipe), recipe, SCHEDULE, start)


def test_the_bill_of_a_branch_is_its_parents_trunk_and_its_own_steps(study):
    """Images of 2 a step: each cell 12 steps alone; the study's bill is what was really run, 8 + 1 + 3 + 4 steps."""
    folder = read_study_folder(study)
    bills = {cost.cell.arm: cost for cost in study_costs(folder)[0].values()}
    assert {arm: bill.alone.images for arm, bill in bills.items()} == {"scratch": 24, "late": 24}
    assert sum(bill.whole_as_spent.images for bill in bills.values()) == 2 * (8 + 1 + 3 + 4)
    assert bills["late"].as_spent.images == 8 + 8
    assert folder.random_arms == ("scratch", "late")


def test_the_report_of_a_branch_says_what_it_took_over(study):
    page = build_report(study).read_text()
    assert f"New in this branch: {len(NEW)} tensors" in page
    assert "carried from its parent" in page and "scratch, until the last 4 steps" in page


def test_the_difference_sheet_says_that_an_arm_is_a_branch(data_root):
    prepared = prepare(parse_study(branched(data_root), source="tiny"))
    refuse_undeclared(prepared)
    rows = {row["field"]: row["values"] for row in prepared.differences}
    assert rows["branch_of"] == {"scratch": None, "late": "scratch, until the last 4 steps"}
    assert set(rows) == {"branch_of", *CHANGES}
    assert prepared.recipes["late"][0].model.cascade.enabled


def test_last_may_be_given_in_bases(data_root):
    study = branched(data_root)
    study["arms"]["late"]["last"] = "1x"
    assert LATE_NAME in {segment.name for segment in prepare(parse_study(study, source="tiny")).plan.segments}
