"""Optimizers and averages: torch's own numbers, groups by name, exact when resumed, branched, reused and verified."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from cli_call import call
from headstart.model.build import build
from headstart.recipe.load import load_recipe
from headstart.recipe.recipe import digest, rate_text, schedule_of
from headstart.tasks import make_task
from headstart.tasks.predict import load_trained
from headstart.training.averages import Average
from headstart.training.lineage import Span
from headstart.training.loop import periods
from headstart.training.optimizer import (
    checkpoint_bytes,
    factor_lines,
    make_optimizer,
    parameter_groups,
    set_rate,
)
from headstart.training.rows import evaluations, read_rows
from headstart.training.run import train
from headstart.training.start import partial_restore
from headstart.training.verify import state_differences, verify
from headstart.weights import checkpoint
from killed import Killed, kill_at
from tiny import DETECTOR, tiny_classifier, tiny_recipe, without_clock

ADAMW = {
    "train__optimizer": "adamw", "train__rate": 0.001, "train__betas": [0.8, 0.99], "train__eps": 1e-6,
    "train__layer_decay": 0.5, "train__rates": {"backbone": 0.5}, "train__ema": 0.9, "evaluate__every": "2 steps",
}  # fmt: skip


def rule_of(kind="sgd", rates=None, **changes):
    """The section `train` of a recipe, with factors of the learning rate by part."""
    fields = {"optimizer": kind, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "norm_weight_decay": 0.0}
    train = load_recipe("base").train
    return train.model_copy(update=fields | changes | {"rates": train.rates.model_copy(update=rates)})


RULE = rule_of()


def killed_at(recipe, out, step, **options):
    """Begin a run and end it after the update of `step`."""
    with pytest.raises(Killed):
        train(recipe, out, progress=kill_at(step), **options)


def rows_of(*runs):
    """Training and evaluation rows of runs, one after the other, without the clock."""
    rows = [row for run in runs for row in without_clock(read_rows(run.directory / "rows.jsonl"))]
    return [row for row in rows if row["kind"] in ("train", "eval")]


def state_of(run):
    """The last checkpoint's content that training made."""
    state = checkpoint.load(run.checkpoint)
    return {key: state[key] for key in ("model", "optimizer", "counters", "window", "average")}


@pytest.fixture(scope="module")
def recipe(data_root):
    """A classifier trained by AdamW with its fields, rates by part, layer decay and averages."""
    return tiny_classifier(data_root, train__base="6 steps", **ADAMW)


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    """Its undisturbed run."""
    return train(recipe, tmp_path_factory.mktemp("straight"))


def test_resumed_after_a_kill_equals_uninterrupted(recipe, straight, tmp_path):
    killed_at(recipe, tmp_path, 3)
    resumed = train(recipe, tmp_path)
    assert resumed.directory.name == straight.directory.name and rows_of(resumed) == rows_of(straight)
    assert state_differences(state_of(straight), state_of(resumed)) == []


def test_trunk_tail_and_a_reused_trunk_equal_a_straight_run(recipe, straight, tmp_path):
    schedule = schedule_of(recipe, 8)
    assert (schedule.first_drop, schedule.total) == (4, 6)
    constant = replace(schedule, total=4, drops=())
    trunk = train(recipe, tmp_path, span=Span(constant, 4, is_trunk=True, marks=(2,)))
    tail = train(recipe, tmp_path, span=Span(schedule, 6, trunk.checkpoint))
    assert state_differences(state_of(straight), state_of(tail)) == []
    whole = [row for row in rows_of(straight) if row["kind"] == "train" or row["step"] != 4]
    assert [row for row in rows_of(trunk, tail) if row["kind"] == "train" or row["step"] != 4] == whole
    shorter = train(recipe, tmp_path, span=Span(replace(constant, total=3), 3, is_trunk=True))
    assert read_rows(shorter.directory / "rows.jsonl")[0]["source"] == "trunk", "continues the mark at 2"
    alone = train(recipe, tmp_path / "alone", span=Span(replace(constant, total=3), 3, is_trunk=True))
    assert state_differences(state_of(alone), state_of(shorter)) == []


@pytest.mark.parametrize("changes", [{}, {"train__momentum": 0.0}, {"train__optimizer": "adamw", "train__ema": 0.9}])
def test_the_bytes_of_a_checkpoint_are_foretold(data_root, tmp_path, changes):
    recipe = tiny_recipe(data_root, **changes)
    state = checkpoint.load(train(recipe, tmp_path).checkpoint)
    moments = [
        value
        for own in state["optimizer"]["state"].values()
        for name, value in own.items()
        if name != "step" and value is not None
    ]
    tensors = [*state["model"].values(), *moments, *state.get("average", {"weights": {}})["weights"].values()]
    task = make_task(recipe)
    found = checkpoint_bytes(task.model, recipe.train)
    assert found == sum(value.nbytes for value in tensors)


def test_it_is_verified_averages_included(straight):
    found = verify(straight.directory)
    assert (found.start, found.stop, found.differences) == (4, 6, ())
    state = checkpoint.load(straight.checkpoint)
    name, value = next((name, value) for name, value in state["average"]["weights"].items() if value.dim() == 4)
    value.view(torch.int32)[0, 0, 0, 0] ^= 1
    checkpoint.save(straight.checkpoint, state)
    try:
        assert verify(straight.directory).differences == (f"average.{name}",)
    finally:
        value.view(torch.int32)[0, 0, 0, 0] ^= 1
        checkpoint.save(straight.checkpoint, state)


def test_a_branch_with_another_head_takes_over_moments_and_averages(recipe, tmp_path):
    """Killed inside and run again it ends the same, and it is verified from its parent on."""
    schedule = schedule_of(recipe, 8)
    trunk = train(recipe, tmp_path, span=Span(replace(schedule, total=4, drops=()), 4, is_trunk=True))
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"hidden": (4,)})})
    span = Span(schedule, 6, trunk.checkpoint, partial_restore=True)
    whole = train(other, tmp_path, span=span)
    (tmp_path / "torn").mkdir()
    trunk.directory.rename(tmp_path / "torn" / trunk.directory.name)
    moved = replace(span, parent=tmp_path / "torn" / trunk.directory.name / "checkpoints" / trunk.checkpoint.name)
    killed_at(other, tmp_path / "torn", 5, span=moved)
    again = train(other, tmp_path / "torn", span=moved)
    assert state_differences(state_of(whole), state_of(again)) == [] and rows_of(whole) == rows_of(again)
    assert verify(again.directory).differences == ()
    state = state_of(whole)
    names = {
        i: n for group in state["optimizer"]["param_groups"] for i, n in zip(group["params"], group["param_names"])
    }
    steps = {names[index]: int(entry["step"]) for index, entry in state["optimizer"]["state"].items()}
    assert sorted(name for name, step in steps.items() if step == 2) == ["fc.weight", "fcs.0.bias", "fcs.0.weight"]
    assert steps["fc.bias"] == 6, "of the same shape in both heads"
    assert {step for name, step in steps.items() if name.startswith("backbone.")} == {6}
    assert state["average"]["weights"].keys() == steps.keys()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_is_torchs_and_the_written_formula(kind):
    torch.manual_seed(0)
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    rule = rule_of(kind, norm_weight_decay=0.1)
    ours = make_optimizer(net, rule, 0.01)
    theirs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        other.parameters(), lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, fused=True
    )
    weight = net.weight.detach().double()
    first, second = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for step in range(1, 5):
        rate = 0.01 / step
        set_rate(ours, rate)
        theirs.param_groups[0]["lr"] = rate
        gradients = [torch.randn_like(p) for p in net.parameters()]
        for model, optimizer in ((net, ours), (other, theirs)):
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter.grad = gradient.clone()
            optimizer.step()
        gradient = gradients[0].double()
        if kind == "adam":
            gradient = gradient + 0.1 * weight
        else:
            weight = weight * (1 - rate * 0.1)
        first, second = 0.8 * first + 0.2 * gradient, 0.99 * second + 0.01 * gradient**2
        weight = weight - rate * first / (1 - 0.8**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))
    torch.testing.assert_close(net.weight.double(), weight, rtol=1e-6, atol=1e-7)


def groups_of(model, rule):
    """{(factor, weight decay): names of the parameters} of a rule's groups."""
    found = {}
    for group in parameter_groups(model, rule):
        key = group.get("factor", 1.0), group["weight_decay"]
        assert key not in found
        found[key] = [name for name, _ in group["params"]]
    return found


def detector(**changes):
    """A tiny detector without data."""
    return build(load_recipe("base", {**DETECTOR, **changes}), 3)


def test_layer_decay_groups_by_name():
    model = detector(**{"model.mask.enabled": False, "start.kind": "random"})
    names = [name for name, _ in model.named_parameters()]
    special = {name for name, parameter in model.named_parameters() if parameter.dim() <= 1}
    rule = rule_of(layer_decay=0.5, rates={"backbone": 0.25, "pyramid": 3.0})
    prefixes = {
        0.25 / 32: ("backbone.conv1.", "backbone.bn1."),
        0.25 / 16: ("backbone.layer1.",),
        0.25 / 8: ("backbone.layer2.",),
        0.25 / 4: ("backbone.layer3.",),
        0.25 / 2: ("backbone.layer4.",),
        3.0: ("pyramid.",),
        1.0: ("rpn.", "box_head."),
    }
    expected = {
        (factor, decay): chosen
        for factor, starts in prefixes.items()
        for decay, is_special in ((0.1, False), (0.0, True))
        if (chosen := [name for name in names if name.startswith(starts) and (name in special) == is_special])
    }
    assert groups_of(model, rule) == expected and sum(map(len, expected.values())) == len(names)
    assert len(expected) == 14
    assert factor_lines(model, rule) == [
        "learning rate by part: stem x 0.0078125, stage1 x 0.015625, stage2 x 0.03125, stage3 x 0.0625, "
        "stage4 x 0.125, pyramid x 3, heads x 1"
    ]
    assert factor_lines(model, RULE) == []
    assert factor_lines(model, rule_of(rates={"backbone": 0.1})) == [
        "learning rate by part: backbone x 0.1, pyramid x 1, heads x 1"
    ]
    optimizer = make_optimizer(model, rule, 0.02)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.02 * group.get("factor", 1.0) for group in optimizer.param_groups] and min(rates) == 0.02 / 128
    set_rate(optimizer, 0.1)
    assert min(group["lr"] for group in optimizer.param_groups) == 0.1 * 0.25 / 32


def test_without_factors_there_are_two_groups_as_before():
    model = detector()
    groups = parameter_groups(model, RULE)
    expected = [
        [name for name, p in model.named_parameters() if p.dim() > 1],
        [name for name, p in model.named_parameters() if p.dim() <= 1],
    ]
    assert [[name for name, _ in group["params"]] for group in groups] == expected
    assert all(group.keys() == {"params", "weight_decay"} for group in groups)


class OneBlock(nn.Module):
    """A net whose backbone has a last stage only."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.backbone.parts = lambda: {"stem": [], "stage4": [self.backbone]}


def test_layer_decay_needs_stages():
    with pytest.raises(ValueError, match=r"^train\.layer_decay: 0\.5, but this backbone has no stages to tell apart"):
        parameter_groups(OneBlock(), rule_of(layer_decay=0.5))


def test_layer_decay_without_stages_is_refused_before_the_first_step(data_root, monkeypatch, tmp_path):
    recipe = tiny_classifier(data_root, train__layer_decay=0.5)
    task = make_task(recipe)
    monkeypatch.setattr(task.model.backbone, "parts", lambda: {"stage4": [task.model.backbone.layer4]}, raising=False)
    with pytest.raises(ValueError, match=r"^train\.layer_decay: 0\.5, but this backbone has no stages"):
        periods(recipe, task)


def test_the_linear_rule_is_of_sgd():
    sgd, adamw = (load_recipe("base", {"train.batch": 4, "train.optimizer": kind}) for kind in ("sgd", "adamw"))
    assert schedule_of(sgd, 100).base_rate == 0.005 and schedule_of(adamw, 100).base_rate == 0.02
    assert rate_text(sgd) == "0.005 = 0.02 x 4/16 (linear scaling with the batch)"
    assert rate_text(adamw) == "0.02 (adamw: not scaled with the batch)"


@pytest.mark.parametrize(
    ("name", "known"), [("base", "3925d0668a8c"), ("base_classify", "6f4af01ede9c"), ("demo", "d9e1ce8a5e7c")]
)
def test_digests_are_those_from_before_these_fields(name, known):
    assert digest(load_recipe(name, {"train.precision": "fp32"})) == known


def test_averages_by_hand():
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
        average = Average(net, 0.5)
        net.weight.copy_(torch.tensor([[3.0, 2.0]]))
        average.update(1)  # a decay of 2 / 11
        torch.testing.assert_close(average.weights["weight"], torch.tensor([[1 + 2 * 9 / 11, 2.0]]))
        average.weights["weight"].fill_(1.0)
        average.update(100)  # a decay of 0.5
    assert torch.equal(average.weights["weight"], torch.tensor([[2.0, 1.5]]))
    kept = {"weights": {"weight": torch.zeros(1, 2), "gone": torch.zeros(1)}}
    assert not Average(net, 0.5, kept).weights["weight"].any()
    assert torch.equal(Average(net, 0.5, {"weights": {"weight": torch.zeros(3)}}).weights["weight"], net.weight)


def test_averages_change_nothing_of_the_live_weights(data_root, tmp_path, monkeypatch, capsys):
    """Same rows and weights as without them, PreciseBN included; the average's rows and tensors come on top."""
    options = {"model__norm": "batch", "evaluate__precise_bn": 1, "evaluate__every": "1 steps"}
    options |= {"train__base": "1 steps", "train__warmup": 0}
    plain = train(tiny_recipe(data_root, **options), tmp_path)
    averaged = train(tiny_recipe(data_root, train__ema=0.5, **options), tmp_path)
    rows = rows_of(averaged)
    assert [row for row in rows if "weights" not in row] == rows_of(plain)
    mine = evaluations(rows, weights="ema")
    assert [row["step"] for row in mine] == [row["step"] for row in evaluations(rows)] == [1, 2]
    assert len(rows) == len(rows_of(plain)) + len(mine) and averaged.metrics == plain.metrics
    states = [checkpoint.load(run.checkpoint) for run in (plain, averaged)]
    assert state_differences(*({key: s[key] for key in ("model", "optimizer", "statistics")} for s in states)) == []
    assert "average" not in states[0] and states[1]["average"]["statistics"].keys() == states[1]["statistics"].keys()
    average = states[1]["average"]
    expected = states[1]["model"] | average["weights"] | average["statistics"]
    used = load_trained(averaged.directory, weights="ema").model.state_dict()
    assert all(torch.equal(used[name], value) for name, value in expected.items())
    assert any(
        not torch.equal(used[name], value)
        for name, value in load_trained(averaged.directory).model.state_dict().items()
    )
    out = tmp_path / "ema.safetensors"
    assert call(monkeypatch, capsys, "export", averaged.directory, out, "--weights", "ema").code == 0
    exported = checkpoint.load(out)["model"]
    assert all(torch.equal(exported[name], value) for name, value in average["weights"].items())
    with pytest.raises(ValueError, match=r"weights: 'ema', but it holds no averaged weights \(train\.ema\)"):
        load_trained(plain.directory, weights="ema")
    with pytest.raises(ValueError, match=r"weights: 'mean', expected live or ema"):
        load_trained(averaged.directory, weights="mean")
    answer = call(monkeypatch, capsys, "eval", averaged.directory, "--weights", "ema")
    points = [f"{100 * mine[-1]['metrics'][kind]['AP']:.1f}" for kind in ("box", "mask")]
    assert answer.code == 0 and all(value in answer.out for value in points)
    answer = call(monkeypatch, capsys, "predict", plain.directory, data_root / "scenes/val", "--weights", "ema")
    assert answer.code == 2 and "it holds no averaged weights" in answer.err


def small_net(width):
    """Two layers, of which the second has `width` outputs."""
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, width))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_restored_state_has_the_memory_layout_of_its_parameters(kind, tmp_path):
    """Of a branch that changes train.channels_last: fused optimizers take momentum and weights in order of memory."""
    (tmp_path / "a.pt").write_bytes(b"x")
    parent, child = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    old, new = (make_optimizer(net, rule_of(kind), 0.1) for net in (parent, child))
    images = torch.randn(2, 4, 5, 5)
    parent(images).square().sum().backward()
    old.step()
    facts = {"input": {"mean": [0.0] * 4, "std": [1.0] * 4, "order": "rgb"}}
    state = {"model": parent.state_dict(), "optimizer": deepcopy(old.state_dict()), "step": 1, "recipe": facts}
    restored, _ = partial_restore(state, tmp_path / "a.pt", child, new)
    child.load_state_dict(restored["model"])
    new.load_state_dict(restored["optimizer"])
    for net, optimizer in ((parent, old), (child, new)):
        optimizer.zero_grad()
        net(images).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(child.weight, parent.weight)


@pytest.mark.parametrize(("before", "after"), [("adamw", "adamw"), ("sgd", "sgd"), ("sgd", "adamw"), ("adam", "sgd")])
def test_a_partial_restore_takes_over_the_state_of_the_same_kind(before, after, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"x")
    parent, child = small_net(2), small_net(3)
    old, new = (make_optimizer(net, rule_of(kind), 0.1) for net, kind in ((parent, before), (child, after)))
    parent(torch.ones(1, 2)).sum().backward()
    old.step()
    facts = {"input": {"mean": [0.0] * 3, "std": [1.0] * 3, "order": "rgb"}}
    state = {"model": parent.state_dict(), "optimizer": old.state_dict(), "step": 1, "recipe": facts}
    restored, report = partial_restore(state, tmp_path / "a.pt", child, new)
    new.load_state_dict(restored["optimizer"])
    found = {name: new.state[parameter] for name, parameter in child.named_parameters() if new.state[parameter]}
    if before != after:
        assert found == {} and "2 tensors carried over with no momentum" in report.notes[0]
    else:
        fresh = [name for name in found if name.startswith("1.")]
        assert fresh == (["1.weight", "1.bias"] if after == "sgd" else []) and {"0.weight", "0.bias"} <= found.keys()
        assert not any(found[name]["momentum_buffer"].any() for name in fresh)
        for name, parameter in parent[0].named_parameters():
            assert state_differences(dict(old.state[parameter]), dict(found[f"0.{name}"])) == []
    child(torch.ones(1, 2)).sum().backward()
    new.step()
