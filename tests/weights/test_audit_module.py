"""The audit of live modules and checkpoints of other trainers: each trap rebuilt on a small foreign net."""

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cli_call import call
from headstart import audit_module
from headstart.weights.audits.checkpoint import audit_checkpoint
from headstart.weights.audits.read import read_any
from headstart.weights.audits.traps import TRAINERS, TRAPS
from headstart.weights.audits.values import pair
from headstart.weights.files import WeightFile, read_weights
from weight_nets import randomise


class Net(nn.Module):
    """A detector of another trainer: the backbone is in a module of its own, and the head is new."""

    def __init__(self, seed=0, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8))
        self.backbone = nn.ModuleDict({"body": body})
        self.head = nn.Linear(8, 4)


def trained(seed=7):
    """The state dict of a trained classifier: the names of the body, and a head of its own."""
    body = randomise(Net(seed).backbone["body"], seed).state_dict()
    return {**{name: value.clone() for name, value in body.items()}, "fc.weight": torch.ones(5, 8)}


def file_of(tensors, path="w.pth"):
    return WeightFile(path, "ab" * 32, dict(tensors))


def loaded(seed=0, weights=None, **changes):
    """A module with its values right after construction, and the file, loaded as a trainer would."""
    model = Net(seed, **changes).train()
    before, weights = copy.deepcopy(model.state_dict()), weights or trained()
    model.backbone["body"].load_state_dict({name: value for name, value in weights.items() if "fc" not in name})
    return model, before, file_of(weights)


def assert_errors(result, *patterns):
    assert len(result.errors) == len(patterns), result.errors
    for error, pattern in zip(result.errors, patterns, strict=True):
        assert all(part in error for part in pattern.split(" ... ")), error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_that_loaded_its_file(dtype, wrapped):
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in trained().items()}
    model, before, file = loaded(weights=weights)
    other = Net(1).state_dict()
    if wrapped:  # as DistributedDataParallel names its tensors
        model, before = nn.ModuleDict({"module": model}), {f"module.{name}": value for name, value in before.items()}
    result = audit_module(model, before, file, other=other)
    assert result.errors == () and result.left_out == ("fc.weight",)
    rows = {row.group: row for row in result.rows}
    assert rows["backbone"].source == "w.pth (sha256 abababababab)" and rows["backbone"].norm == "batch, live"
    assert rows["head"].source == "as constructed" and rows["head"].training == "trains"
    assert sum(row.num_tensors for row in result.rows) == 13
    result.check()


def test_a_random_module_without_a_file_has_no_errors():
    model = Net().train()
    result = audit_module(model, copy.deepcopy(model.state_dict()), other=Net(1).state_dict())
    assert result.errors == () and {row.source for row in result.rows} == {"as constructed"}
    assert audit_module(model).errors == () and audit_module(model).rows[0].source == "unknown"


def test_traps_1_4_5_6_frozen_random_layers_and_identity_norms():
    model = Net(norm=FrozenBatchNorm2d).train()
    model.backbone.requires_grad_(False)
    result = audit_module(model, copy.deepcopy(model.state_dict()))
    assert_errors(
        result,
        "3 tensors ... random and frozen ... traps 1 to 6",
        "2 norms ... identity statistics ... no normalisation at all (traps 1, 2, 4, 5, 6)",
    )
    assert result.rows[0].norm == "frozen_batch (torchvision)" and result.rows[0].training == "frozen"


@pytest.mark.parametrize("traps", ["2", "3"])
def test_traps_of_a_first_stage_that_stays_frozen(traps):
    model = Net().train()
    model.backbone["body"][0].requires_grad_(False)
    errors = ["1 tensor (backbone.body.0.weight) are random and frozen ... traps 1 to 6"]
    if traps == "2":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        errors.append("2 norms ... identity statistics ... traps 1, 2,")
    assert_errors(audit_module(model, copy.deepcopy(model.state_dict())), *errors)


def test_trap_7_weights_load_into_an_arm_without_a_file():
    model, before, _ = loaded()
    assert_errors(audit_module(model, before), "11 tensors ... changed after construction ... trap 7")


def test_trap_8_a_constructor_loads_weights_by_itself():
    made = []
    for seed in (0, 1):
        model, _, file = loaded(seed)
        made.append(model)
    result = audit_module(made[0], copy.deepcopy(made[0].state_dict()), other=made[1].state_dict())
    assert_errors(result, "2 tensors (backbone.body.0.weight ... the same for every seed ... trap 8")
    assert audit_module(made[0], Net(0).state_dict(), file, other=made[1].state_dict()).errors == ()


def test_trap_9_statistics_of_frozen_norms_move():
    model, before, file = loaded()
    model.backbone.requires_grad_(False)
    assert_errors(audit_module(model, before, file), "2 norms ... statistics follow each batch (trap 9)")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert audit_module(model, before, file).errors == ()


def test_trap_10_nothing_or_not_everything_was_loaded():
    model, before, file = loaded()
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(before)
    assert_errors(audit_module(fresh, before, file), "none of the 12 tensors of w.pth is in the module ... trap 10")
    with torch.no_grad():
        model.backbone["body"][3].weight.copy_(before["backbone.body.3.weight"])
        model.backbone["body"][1].bias[3] += 1
    assert_errors(
        audit_module(model, before, file),
        "1 tensor (backbone.body.3.weight) have their initial values, although w.pth holds them (trap 10)",
        "1 tensor (backbone.body.1.bias) differ from those of w.pth (trap 10)",
    )


def test_trap_11_the_pretrained_file_is_random():
    body = {name: value for name, value in Net(5).backbone["body"].state_dict().items() if name != "3.bias"}
    model, before = Net().train(), Net().state_dict()
    model.backbone["body"].load_state_dict(body, strict=False)
    assert_errors(
        audit_module(model, before, file_of(body)), "w.pth holds a network that was never trained ... trap 11"
    )


# --- checkpoints


def test_a_checkpoint_against_the_weights_that_it_began_with(tmp_path):
    start, rest = trained(), torch.Generator().manual_seed(0)
    state = {f"backbone.body.{name}": value.clone() for name, value in start.items() if "fc" not in name}
    state["backbone.body.3.weight"] += 0.01 * torch.randn(8, 8, 3, 3, generator=rest)
    save_file(start, tmp_path / "start.safetensors")
    torch.save({"model": state}, tmp_path / "end.pth")
    result = audit_checkpoint(tmp_path / "end.pth", "torchvision", tmp_path / "start.safetensors")
    assert result.errors == ()
    assert [(row.group, row.training) for row in result.rows][:2] == [
        ("backbone.body.0", "unchanged"), ("backbone.body.1", "unchanged"),
    ]  # fmt: skip
    assert f"tuned from {tmp_path}/start.safetensors" in result.rows[2].source

    state["backbone.body.3.weight"] = torch.randn(8, 8, 3, 3, generator=rest)
    torch.save({"model": state}, tmp_path / "end.pth")
    result = audit_checkpoint(tmp_path / "end.pth", "torchvision", tmp_path / "start.safetensors")
    assert_errors(result, "1 tensor (backbone.body.3.weight) of ... nothing in common with ... trap 10")


def test_an_untrained_checkpoint_is_named(tmp_path):
    torch.save(Net().backbone.state_dict() | {"body.3.bias": torch.zeros(8)}, tmp_path / "w.pth")
    errors = ["2 norms ... identity statistics", "never trained ... trap 11"]
    assert_errors(audit_checkpoint(tmp_path / "w.pth", "lightly"), *errors)


class Trigger:
    """An object whose unpickling would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("key", ["model", "ema", None])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_modules_are_read_without_executing_anything(key, legacy, tmp_path):
    """Ultralytics writes whole modules: {"epoch", "model": Module, "ema": Module}."""
    net, path, marker = randomise(Net()), tmp_path / "best.pt", tmp_path / "executed"
    net.trigger = Trigger(marker)
    content = net if key is None else {"epoch": 3, "model": None, key: net, "date": "today"}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    found = read_any(path)
    expected = net.state_dict()
    assert found.tensors.keys() == expected.keys() and found.author == "pickled objects"
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    assert not marker.exists() and any("nothing of them was executed" in line for line in _notes(path))


def _notes(path: Path):
    return audit_checkpoint(path, "ultralytics").notes


def test_a_module_in_itself_ends(tmp_path):
    net = Net()
    net._modules["head"] = nn.ModuleDict()
    net._modules["head"]._modules["again"] = net._modules["head"]
    torch.save(net, tmp_path / "w.pt")
    assert len(read_any(tmp_path / "w.pt").tensors) == 13


def test_pairs_find_the_prefix_on_either_side():
    one = {"a.conv.weight": torch.zeros(2, 2), "a.bn.weight": torch.zeros(2), "conv.weight": torch.zeros(2, 2)}
    other = {"conv.weight": torch.zeros(2, 2), "bn.weight": torch.zeros(2)}
    assert pair(one, other) == {"a.conv.weight": "conv.weight", "a.bn.weight": "bn.weight"}
    assert pair(other, one) == {"conv.weight": "a.conv.weight", "bn.weight": "a.bn.weight"}
    assert pair({"x": torch.zeros(2)}, {"x": torch.zeros(3)}) == {}


# --- the verb


def test_the_verb_names_all_eleven_traps_and_audits_files(monkeypatch, capsys, tmp_path):
    answer = call(monkeypatch, capsys, "audit")
    assert answer.code == 0 and [trap.number for trap in TRAPS] == list(range(1, 12))
    assert all(f"{trap.number:>2}. {trap.trainer}" in answer.out for trap in TRAPS)
    assert {number for trainer in TRAINERS.values() for number in trainer.traps} <= {trap.number for trap in TRAPS}

    torch.save(randomise(Net()).state_dict(), tmp_path / "w.pth")
    answer = call(monkeypatch, capsys, "audit", tmp_path / "w.pth", "--as", "ultralytics")
    assert (
        answer.code == 0
        and "trap 7, Ultralytics" in answer.out
        and "not stated in the file; of ultralytics" in answer.out
    )
    torch.save(Net().state_dict(), tmp_path / "w.pth")
    answer = call(monkeypatch, capsys, "audit", tmp_path / "w.pth", "--as", "hf")
    assert answer.code == 1 and "wrong: 2 norms" in answer.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["w.pth"], "audit: --as is missing, expected one of detectron2"),
        (["w.pth", "--as", "torchvison"], "--as: 'torchvison' is not known, did you mean 'torchvision'"),
        (["--as", "hf"], "--as and --from are given without a file"),
        (["absent.pth", "--as", "hf"], "absent.pth: no such weight file"),
    ],
)
def test_the_verb_refuses_in_one_line(arguments, message, monkeypatch, capsys):
    answer = call(monkeypatch, capsys, "audit", *arguments)
    assert answer.code == 2 and message in answer.err and len(answer.err.strip().splitlines()) == 1


def test_the_page_has_every_trap_with_its_threads():
    page = (Path(__file__).parents[2] / "docs/starts.md").read_text(encoding="utf-8")
    for trap in TRAPS:
        line = (trap.number, trap.trainer, trap.setting, trap.effect, ", ".join(trap.threads))
        assert f"| {' | '.join(map(str, line))} |" in page
    assert all(f"`{name}`" in page for name in TRAINERS)


def test_values_before_that_are_no_copy_are_refused():
    model = Net().train()
    with pytest.raises(ValueError, match=r"before: shares its memory with the module, expected a copy"):
        audit_module(model, model.state_dict())


def test_modules_that_hold_one_another_many_times_end(tmp_path):
    """Two children a level, all the same module: 2^30 paths in a file of a few kilobytes."""
    module = nn.Linear(2, 2)
    for _ in range(30):
        module = nn.ModuleList([module, module])
    torch.save(module, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w.pt: .*100,000 modules"):
        read_any(tmp_path / "w.pt")


def test_tensors_beside_a_trainers_own_objects_are_read(tmp_path):
    """Lightning keeps hyper-parameters of any class beside the state dict."""
    state, path = randomise(Net()).state_dict(), tmp_path / "w.ckpt.pth"
    torch.save({"hyper_parameters": {"path": Path("data")}, "state_dict": state}, path)
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    assert read_any(path).tensors.keys() == state.keys()
