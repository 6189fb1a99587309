"""Known losses are the same with the instructions of older processors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
KNOWN = [
    "model/test_detector.py::test_losses_at_a_fixed_seed_are_known",
    "model/test_detector.py::test_losses_in_double_precision_are_known",
    "model/test_cascade.py::test_losses_at_a_fixed_seed_are_known",
    "model/test_cascade.py::test_losses_in_double_precision_are_known",
    "model/test_corners.py::test_losses_of_the_first_steps",
    "model/test_corners.py::test_losses_of_the_first_steps_in_double_precision",
    "training/test_loop.py::test_known_losses",
]
# Read once, when torch is loaded: by its own operations, and by oneDNN for convolutions.
INSTRUCTION_SETS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
# Every processor has the plain ones.
AVAILABLE = [name for name in INSTRUCTION_SETS if name == "DEFAULT" or "AVX" in torch.backends.cpu.get_cpu_capability()]


@pytest.mark.slow
@pytest.mark.parametrize("name", AVAILABLE)
def test_known_losses_are_the_same(name, tmp_path):
    """The tests of the known losses, in a process with these instructions."""
    used = f"import torch; assert torch.backends.cpu.get_cpu_capability() == {name!r}"
    code = f"{used}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}"]
    tests = [str(FOLDER / test) for test in KNOWN]
    result = subprocess.run(
        [sys.executable, "-c", code, *options, *tests],
        env={**os.environ, **INSTRUCTION_SETS[name]},
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and f"{len(KNOWN) + 1} passed" in result.stdout, result.stdout + result.stderr
