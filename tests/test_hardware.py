"""What this machine says of itself, what `auto` takes on it and on others, and `headstart env`."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import headstart
from cli_call import call
from headstart import hardware
from headstart.hardware import (
    bf16_speed,
    choices,
    choose_compile,
    choose_device,
    choose_precision,
    choose_threads,
    features,
    native_bf16,
    usable_cores,
)

BF16 = ("avx2", "avx512f", "avx512_bf16")


def processor_with(monkeypatch, *found, level="AVX512"):
    """This machine with a processor of these features and none of the limits."""
    monkeypatch.setattr(hardware, "features", lambda: found)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    for name in hardware.LIMITS:
        monkeypatch.delenv(name, raising=False)


def gpu_with(monkeypatch, *capability):
    """This machine with a CUDA GPU, as far as what is asked of torch goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


def test_cores_are_those_of_the_affinity_mask_where_the_system_has_one():
    with patch.object(os, "process_cpu_count", lambda: 3, create=True):
        assert usable_cores() == 3
    with patch.object(os, "process_cpu_count", lambda: None, create=True):
        assert usable_cores() == 1


def test_cores_without_process_cpu_count(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="Linux on x86 lists its flags"
)
def test_features_are_the_flags_that_the_system_lists():
    text = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    named = {"avx2": "avx2", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}
    assert set(features()) == {name for name, flag in named.items() if flag in flags}
    assert f": {hardware.processor()}\n" in text


@pytest.mark.parametrize(
    ("found", "level", "limit", "native", "why"),
    [
        (BF16, "AVX512", None, True, "the processor has AVX512_BF16"),
        ((*BF16, "amx"), "AVX512", None, True, "the processor has AMX and AVX512_BF16"),
        ((*BF16, "amx"), "AVX512", "AVX512_CORE_BF16", True, "the processor has AMX"),
        (("avx2", "avx512f"), "AVX512", None, False, "neither AMX nor AVX512_BF16"),
        (("avx2",), "AVX2", None, False, "neither AMX nor AVX512_BF16"),
        ((), "DEFAULT", None, False, "neither AMX nor AVX512_BF16"),
        (BF16, "AVX512", "AVX2", False, "ONEDNN_MAX_CPU_ISA=AVX2 forbids"),
        (BF16, "AVX512", "avx512_core", False, "ONEDNN_MAX_CPU_ISA=avx512_core forbids"),
        (BF16, "AVX2", None, False, "held at AVX2"),
        (BF16, "DEFAULT", None, False, "held at DEFAULT"),
    ],
)
def test_auto_takes_bf16_exactly_where_a_processor_computes_it(monkeypatch, found, level, limit, native, why):
    processor_with(monkeypatch, *found, level=level)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    chosen = choose_precision("auto", "cpu")
    assert chosen.value == ("bf16" if native else "fp32") and chosen.reason.startswith("auto: ")
    assert why in chosen.reason
    assert choose_precision("fp32", "cpu").value == "fp32"


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_auto_takes_bf16_on_a_gpu_from_compute_capability_8_on(monkeypatch, capability, native):
    gpu_with(monkeypatch, *capability)
    chosen = choose_precision("auto", "cuda")
    assert chosen.value == ("bf16" if native else "fp32")
    assert f"Some GPU has compute capability {capability[0]}.{capability[1]}" in chosen.reason
    assert choose_precision("auto", "mps").value == "fp32"


def test_bf16_without_its_instructions_is_taken_at_a_price_that_is_said(monkeypatch):
    processor_with(monkeypatch, "avx2")
    monkeypatch.setattr(hardware, "bf16_speed", lambda device: 0.125)
    chosen = choose_precision("bf16", "cpu")
    assert chosen.value == "bf16" and "\n" not in chosen.reason
    assert "neither AMX nor AVX512_BF16" in chosen.reason and "8.0 times as long as in fp32" in chosen.reason
    processor_with(monkeypatch, *BF16)
    assert choose_precision("bf16", "cpu").reason == "as given; the processor has AVX512_BF16"


def test_timing_bf16_changes_no_randomness_and_needs_no_gradient_mode():
    bf16_speed.cache_clear()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        speed = bf16_speed("cpu")
        assert not torch.is_grad_enabled()
    assert 0 < speed < 1000 and bf16_speed("cpu") == speed
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN's limits need oneDNN")
def test_under_a_real_limit_bf16_is_slower_and_auto_leaves_it():
    """ONEDNN_MAX_CPU_ISA=AVX2 takes bf16's instructions away: 0.1 of the speed of fp32, where it was measured."""
    asked = "from headstart.hardware import *; print(choose_precision('auto', 'cpu').value, bf16_speed('cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", asked], env=environment, check=True, capture_output=True, text=True)
    precision, speed = said.stdout.split()
    assert precision == "fp32" and float(speed) < 1


def test_the_device_is_a_gpu_where_there_is_one_and_the_cpu_when_asked(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").value == choose_device("cpu").value == "cpu"
    for kind in ("cuda", "mps", "tpu"):
        with pytest.raises(ValueError, match=rf"^device: {kind}, but .*; expected auto or cpu on this machine$"):
            choose_device(kind)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").value == "cpu" and "untested" in choose_device("auto").reason
    assert choose_device("mps").value == "mps" and "untested" in choose_device("mps").reason
    with pytest.raises(ValueError, match=r"device: cuda, but .*; expected auto or cpu or mps"):
        choose_device("cuda")
    gpu_with(monkeypatch, 8, 0)
    assert choose_device("auto").value == choose_device("cuda").value == "cuda"
    assert choose_device("auto").reason == "auto: Some GPU"
    assert choose_device("cpu").value == "cpu"


def test_threads_and_compile_say_why(monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 7)
    assert choose_threads(3, 2).value == 3
    assert choose_threads(None, 2).value == 3 and "7 cores among 2" in choose_threads(None, 2).reason
    assert choose_threads(None, 9).value == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(None) == hardware.Choice(torch.get_num_threads(), "OMP_NUM_THREADS=1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert choose_threads(None).reason == "torch's choice for 7 usable cores"
    assert choose_compile(False, "cpu").value is False
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_compile(True, "cpu").reason.endswith("no-such-compiler, which is missing")
    monkeypatch.setenv("CXX", sys.executable)
    assert choose_compile(True, "cpu").reason.endswith("which is installed")
    assert "Triton" in choose_compile(True, "cuda").reason


def test_all_choices_are_made_for_the_device_that_is_taken(monkeypatch):
    processor_with(monkeypatch, "avx2")
    gpu_with(monkeypatch, 9, 0)
    asked = {"precision": "auto", "threads": 1, "compile": False, "processes": 1}
    found = choices(device="auto", **asked)
    assert [choice.value for choice in found.values()] == ["cuda", "bf16", 1, False]
    found = choices(device="cpu", **asked)
    assert [choice.value for choice in found.values()] == ["cpu", "fp32", 1, False]
    assert found["train.compile"].line("train.compile") == "train.compile: false (as given)"


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not tell its memory")
def test_memory_is_the_smaller_of_machine_and_control_group(monkeypatch, tmp_path):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(hardware, "Path", lambda *_: tmp_path / "memory.max")
    assert hardware.memory() == whole
    for text, expected in (("max\n", whole), ("1048576\n", 2**20), (f"{2 * whole}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert hardware.memory() == expected


def test_env_is_one_screen_and_the_same_as_json(monkeypatch, capsys):
    bf16_speed.cache_clear()
    shown = call(monkeypatch, capsys, "env")
    assert shown.code == 0 and shown.err == ""
    assert max(map(len, shown.out.splitlines())) <= 80 and len(shown.out.splitlines()) <= 40
    assert "\x1b" not in shown.out and "│" not in shown.out
    told = call(monkeypatch, capsys, "env", "--json")
    found = json.loads(told.out)
    assert found["headstart"] == headstart.__version__ and found["torch"] and found["timm"] and found["torchvision"]
    assert found["features"] == {name: name in features() for name in ("avx2", "avx512f", "avx512_bf16", "amx")}
    assert found["cores"]["usable"] == usable_cores()
    assert found["auto"]["train.precision"]["value"] == (
        "bf16" if native_bf16(choose_device("auto").value).value else "fp32"
    )
    assert f"headstart {headstart.__version__}, python {platform.python_version()}" in shown.out
    for field, choice in found["auto"].items():
        assert f"{field}: {choice['value']} (" in shown.out
    joined = " ".join(shown.out.split())
    assert all(choice["reason"] in joined for choice in found["auto"].values())


def test_env_on_a_machine_with_gpus_and_without_an_installed_package(monkeypatch, capsys):
    gpu_with(monkeypatch, 8, 6)
    processor_with(monkeypatch, "avx2")
    listed = [{"name": "Some GPU", "memory": 24 * 2**30, "capability": "8.6"}]
    monkeypatch.setattr(hardware, "gpus", lambda: listed)
    monkeypatch.setattr(hardware, "bf16_speed", lambda device: 2.5)
    monkeypatch.setattr(hardware, "memory", lambda: None)

    def missing(name):
        raise hardware.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(hardware.metadata, "requires", missing)
    out = " ".join(call(monkeypatch, capsys, "env").out.split())
    assert "Some GPU, 24.0 GiB, compute capability 8.6" in out and "device: cuda (auto: Some GPU)" in out
    assert "2.5 times the speed of fp32 (cuda" in out and "train.precision: bf16" in out
    assert "memory not known on this system" in out and "extras not known: headstart is not installed" in out


def test_extras_are_those_of_the_package_with_what_is_installed(monkeypatch):
    required = ["torch>=2.11", 'pytest>=8.2; extra == "test"', "ray-x>=2; extra == 'cluster'"]
    monkeypatch.setattr(hardware.metadata, "requires", lambda name: required)
    found = hardware.extras()
    assert found == {"test": {"pytest": pytest.__version__}, "cluster": {"ray-x": None}}
