"""This machine: processor, cores, memory and GPUs, and what a recipe's `auto` takes here. torch is imported when asked.

bf16 is native where products are computed in it: GPUs from compute capability 8.0 on, processors with AMX or
AVX512_BF16. Elsewhere every operand is converted first, and a step takes several times as long as in fp32.
"""

import importlib.util
import os
import platform
import re
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Features that decide which kernels run, by the name in which torch answers.
FEATURES = {"avx2": "avx2", "avx512f": "avx512", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}
NATIVE_CUDA = (8, 0)  # Ampere, the first with bf16 in its tensor cores
# Limits below AVX512_BF16, in the words of oneDNN's CPU dispatcher.
BELOW_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Of a report: packages whose versions change results or speed, and variables that limit what libraries use.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pycocotools", "pydantic")
VARIABLES = (*LIMITS, "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Choice:
    """Value used for a field of a recipe, and the reason."""

    value: Any
    reason: str

    def line(self, field: str) -> str:
        """The field, its value as YAML has it, and the reason, in one line."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{field}: {value} ({self.reason})"


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's under an affinity mask, at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of memory that this process may fill: the machine's, or its control group's; None where unknown."""
    if not hasattr(os, "sysconf"):
        return None
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text(encoding="utf-8").strip() if group.is_file() else "max"
    return min(whole, int(limit)) if limit.isdecimal() else whole


def processor() -> str:
    """The processor's own name, or the architecture where the system does not tell it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()


def features() -> tuple[str, ...]:
    """Those of FEATURES that the processor has, whether or not the environment lets libraries use them."""
    import torch

    return tuple(name for name, asked in FEATURES.items() if getattr(torch.cpu, f"_is_{asked}_supported")())


def choose_device(asked: str) -> Choice:
    """The kind of device (cpu, cuda, mps) of a recipe's `device`; ValueError for a kind that is not there.

    auto is a CUDA GPU, else the CPU. Apple's GPU (mps) is taken only when asked for: it has not been tried.
    """
    import torch

    with_cuda, with_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    missing = "no CUDA GPU is seen" if torch.backends.cuda.is_built() else "this torch is built without CUDA"
    if asked == "auto":
        if with_cuda:
            return Choice("cuda", f"auto: {torch.cuda.get_device_name()}")
        return Choice("cpu", f"auto: {missing}" + (", and mps is untested, so only taken when asked for" * with_mps))
    there = ("auto", "cpu", *["cuda"] * with_cuda, *["mps"] * with_mps)
    if asked not in there:
        why = {"cuda": missing, "mps": "torch sees no GPU of Apple's"}.get(asked, "there is no such kind")
        raise ValueError(f"device: {asked}, but {why}; expected {' or '.join(there)} on this machine")
    return Choice(asked, "as given; untested" if asked == "mps" else "as given")


def native_bf16(device: str) -> Choice:
    """Choice of True if a kind of device computes products in bf16 natively, within the environment's limits."""
    import torch

    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return Choice(
            (major, minor) >= NATIVE_CUDA,
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, native bf16 begins with 8.0",
        )
    if device == "mps":
        return Choice(False, "bf16 has not been tried on mps")
    own = [name for name in ("amx", "avx512_bf16") if name in features()]
    if not own:
        return Choice(False, "the processor has neither AMX nor AVX512_BF16")
    if not torch.backends.mkldnn.is_available():
        return Choice(False, "this torch is built without oneDNN, whose products use AMX and AVX512_BF16")
    level = torch.backends.cpu.get_cpu_capability()  # the processor's, or less by ATEN_CPU_CAPABILITY
    if level in ("DEFAULT", "AVX2"):
        return Choice(False, f"torch's own kernels are held at {level}, below AVX-512")
    limit = next((f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)), "")
    if limit.partition("=")[2].upper() in BELOW_BF16:
        return Choice(False, f"{limit} forbids AMX and AVX512_BF16")
    return Choice(True, f"the processor has {' and '.join(name.upper() for name in own)}")


def choose_precision(asked: str, device: str) -> Choice:
    """fp32 or bf16 for a recipe's `train.precision` on a kind of device: auto is bf16 exactly where it is native.

    The rule depends on features alone, so that its result is always the same on one machine. bf16 where it is not
    native is timed (a second), and the reason says how much slower than fp32 it is.
    """
    if asked == "fp32":
        return Choice("fp32", "as given")
    native = native_bf16(device)
    if asked == "auto":
        return Choice("bf16" if native.value else "fp32", f"auto: {native.reason}")
    if native.value:
        return Choice("bf16", f"as given; {native.reason}")
    slower = (
        f"a convolution and a matrix product, timed here, take {1 / bf16_speed(device):.1f} times as long as in fp32"
    )
    return Choice("bf16", f"as given, but {native.reason}: {slower}")


def choose_threads(asked: int | None, processes: int = 1) -> Choice:
    """CPU threads of a process for a recipe's `train.threads`, by torch's choice or an equal share where it is null."""
    import torch

    if asked is not None:
        return Choice(asked, "as given")
    if processes > 1:
        cores = usable_cores()
        return Choice(max(cores // processes, 1), f"{cores} cores among {processes} processes")
    own = os.environ.get("OMP_NUM_THREADS")
    reason = f"OMP_NUM_THREADS={own}" if own else f"torch's choice for {usable_cores()} usable cores"
    return Choice(torch.get_num_threads(), reason)


def choose_compile(asked: bool, device: str) -> Choice:
    """Choice of torch.compile, with the compiler of its kernels on a kind of device."""
    if not asked:
        return Choice(False, "as given")
    if device == "cuda":
        needs, found = "Triton", importlib.util.find_spec("triton")
    else:
        needs = os.environ.get("CXX", "cl" if os.name == "nt" else "g++")
        found = shutil.which(needs)
    return Choice(True, f"as given; kernels are made by {needs}, which is {'installed' if found else 'missing'}")


def choices(device: str, precision: str, threads: int | None, *, compile: bool, processes: int) -> dict[str, Choice]:
    """Choices on this machine for the fields of a recipe that depend on it: {dotted field: Choice}."""
    kind = choose_device(device)
    return {
        "device": kind,
        "train.precision": choose_precision(precision, kind.value),
        "train.threads": choose_threads(threads, processes),
        "train.compile": choose_compile(compile, kind.value),
    }


@cache
def bf16_speed(device: str) -> float:
    """Speed of bf16 over fp32 for a convolution and a matrix product with gradients, timed once.

    The fastest of three, in turns, with as many threads as torch has: under a second on a free machine. No random
    number is drawn.
    """
    import torch

    def filled(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.1, device=device)

    # Sizes of the demo's pyramid, so that the ratio is near that of a step of the demo: small nets gain least.
    images = filled(2, 64, 24, 24).to(memory_format=torch.channels_last).requires_grad_()
    kernel, rows, matrix = (filled(*shape).requires_grad_() for shape in ((64, 64, 3, 3), (128, 256), (256, 256)))
    fastest = {"fp32": float("inf"), "bf16": float("inf")}
    with torch.enable_grad():
        for repeat in range(4):
            for precision in fastest:
                since = time.perf_counter()
                with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    made = torch.nn.functional.conv2d(images, kernel, padding=1).sum() + (rows @ matrix).sum()
                gradients = torch.autograd.grad(made, (images, kernel, rows, matrix))
                float(sum(gradient.sum() for gradient in gradients))  # waits for the device
                if repeat:  # the first makes kernels
                    fastest[precision] = min(fastest[precision], time.perf_counter() - since)
    return fastest["fp32"] / fastest["bf16"]


def extras() -> dict[str, dict[str, str | None]]:
    """Packages of each optional extra with the version that is installed, None where it is not: {extra: {package: …}}.

    Empty where headstart runs from its source without being installed.
    """
    try:
        required = metadata.requires("headstart") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for text in required:
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", text)
        if extra:
            name = re.match(r"[\w.-]+", text)[0]
            found.setdefault(extra[1], {})[name] = version(name)
    return found


def version(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> list[dict[str, Any]]:
    """The GPUs that torch sees: name, bytes of memory and compute capability, the latter None for Apple's."""
    import torch

    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        own = torch.cuda.get_device_properties(index)
        found.append({"name": own.name, "memory": own.total_memory, "capability": f"{own.major}.{own.minor}"})
    if torch.backends.mps.is_available():
        found.append({"name": "mps (untested)", "memory": None, "capability": None})
    return found


def report() -> dict[str, Any]:
    """Facts of this machine for a bug report, as plain data; bf16 is timed for it."""
    import torch

    import headstart

    chosen = choices("auto", "auto", None, compile=False, processes=1)
    return {
        "headstart": headstart.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "torch_built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA",
        "system": platform.platform(),
        "processor": processor(),
        "features": {name: name in features() for name in FEATURES},
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": {"usable": usable_cores(), "machine": os.cpu_count()},
        "memory": memory(),
        "gpus": gpus(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "auto": {name: asdict(choice) for name, choice in chosen.items() if name != "train.compile"},
        "bf16_speed": round(bf16_speed(chosen["device"].value), 2),
        "extras": extras(),
    }
