"""Formats of numbers and names: points, large counts, times, fractions, metrics."""

import re
from math import isfinite

TRAIN = "train"  # prefix of metrics measured on training images
NONE = "–"
_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
_VARIANTS = {TRAIN: "training images"}
_SIZES = {"APs": "AP small", "APm": "AP medium", "APl": "AP large"}


def points(value: float, *, fine: bool = False) -> str:
    """A difference of a 0..1 metric as signed points: 0.0123 -> "+1.2"; two decimals where `fine`."""
    return f"{100 * value:+.{2 if fine else 1}f}"


def counted(number: int, noun: str) -> str:
    """A count with its noun: "1 seed", "3 seeds"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def amount(value: float) -> str:
    """A step, image or cost count: whole from 100 on, four digits below."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def score(value: float | None) -> str:
    """A metric of 0..1 in points: 0.4134 -> "41.3"; a dash for an unknown one."""
    return f"{100 * value:.1f}" if value is not None and isfinite(value) else NONE


def signed(value: float | None) -> str:
    """A difference of a metric in points, with a sign and a typographic minus: -0.035 -> "−3.5"."""
    if value is None or not isfinite(value):
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def minus(sentence: str) -> str:
    """A sentence with typographic minus signs before its numbers."""
    return re.sub(r"(?<=[\s(])-(?=\d)", "−", sentence)


def large(value: float | None) -> str:
    """A count with three digits and a unit: 8640000 -> "8.64 M"; below a million in full."""
    if value is None or not isfinite(value):
        return NONE
    for size, unit in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) < 999.5 * size else f"{value / size:,.0f} {unit}"
    return amount(value)


def memory(num_bytes: float | None) -> str:
    """Bytes in GB of 10^9, or MB below one: "3.4 GB"."""
    if not num_bytes:
        return NONE
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def span(seconds: float | None) -> str:
    """A time: "48 s", "12 min", "3.4 h", "12.5 days"."""
    if seconds is None or not isfinite(seconds):
        return NONE
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def metric_name(metric: str) -> str:
    """ "box.AP50" -> "box AP50"; sizes in words; "tta:box.AP" -> "box AP (tta)"."""
    variant, _, plain = metric.rpartition(":")
    kind, _, name = plain.rpartition(".")
    return f"{kind} {_SIZES.get(name, name)}".strip() + (f" ({_VARIANTS.get(variant, variant)})" if variant else "")


def fraction_name(fraction: float, images: int | None) -> str:
    """ "all data (800 images)", "10 % of the data (80 images)"; an unknown count is left out."""
    share = "all data" if fraction == 1 else f"{100 * fraction:.3g} % of the data"
    return share if images is None else f"{share} ({counted(images, 'image')})"


def share(fraction: float) -> str:
    """A fraction of the data in few letters: "all", "10 %"."""
    return "all" if fraction == 1 else f"{100 * fraction:g} %"
