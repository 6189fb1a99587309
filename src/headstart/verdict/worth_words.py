"""Sentences on what a start is worth in labelled images."""

from headstart.verdict.numbers import counted, score
from headstart.verdict.words import ONE_SEED, margin_text
from headstart.verdict.worth import HORIZON, Estimate, HeldOut, StartWorth

LIMIT = "twice the images that were tried"
assert HORIZON == 2, "LIMIT names it"


def worth_sentence(found: StartWorth, images: int) -> str:
    """Worth of the start at a number of labelled images, with its interval; none is claimed unless it is shown."""
    needed, candidate = found.needed[images], found.candidate
    near = f"come within {margin_text(found.within)} of it" if found.within else "match it"
    head, start = f"At {images:,} labelled images", f"the {found.baseline} start is worth"
    if needed.value is None:
        worth, how = f"more than {found.most - images:,}", f"does not {near} with {found.most:,}, {LIMIT}"
    else:
        worth = f"about {needed.value - images:,.0f} more" if round(needed.value) > images else "none"
        least = f"{found.least:,} or fewer" if needed.value <= found.least else f"{needed.value:,.0f}"
        how = f"needs {least} to {near}"
    interval = _interval(found, needed, *(_more(found, end, images) for end in (needed.low, needed.high)))
    if found.is_open(images):
        return f"{head} it is open whether {start} any ({worth}, {interval}): {candidate} {how}."
    return f"{head} {start} {worth} ({interval}): {candidate} {how}."


def crossing_sentence(found: StartWorth) -> str:
    """Labelled images from which the candidate stays within the margin of the baseline, with the interval."""
    near = f"within {margin_text(found.within)} of" if found.within else "level with"
    state, crossing = f"{found.candidate} stays {near} {found.baseline} or ahead", found.crossing
    interval = _interval(found, crossing, *(_at(found, end) for end in (crossing.low, crossing.high)))
    if crossing.value is None:
        limit = f"Up to {found.most:,} labelled images, {LIMIT}"
        return f"{limit}, there is no number from which {state} ({interval})."
    if crossing.value <= found.least:
        return f"From the fewest images tried ({found.least:,}) on, {state} ({interval})."
    return f"From about {crossing.value:,.0f} labelled images on, {state} ({interval})."


def held_out_sentence(found: tuple[HeldOut, ...]) -> str:
    """Scores at the largest number of images as the curves without it predicted them, and as measured."""
    first = found[0]
    told = "; ".join(f"{each.arm} {score(each.predicted)} where {score(each.measured)} was measured" for each in found)
    far = ""
    if first.images > HORIZON * first.largest_used:
        far = f" That is {first.images / first.largest_used:.3g} times the next largest set; answers go to twice."
    return f"Curves fitted without the largest set ({first.images:,} images) predicted: {told}.{far}"


def _interval(found: StartWorth, own: Estimate, low: str, high: str) -> str:
    if found.indicative:
        return ONE_SEED
    sources = counted(found.num_seeds, "seed") + (" and other test images" if found.other_images else "")
    between = low if low == high or own.low is None else f"{low} to {high}"
    return f"{100 * found.level:g} % interval {between}, {sources}"


def _more(found: StartWorth, end: float | None, images: int) -> str:
    """An end of the interval of the worth."""
    return f"more than {found.most - images:,}" if end is None else f"{max(end - images, 0):,.0f}"


def _at(found: StartWorth, end: float | None) -> str:
    """An end of the interval of the crossing."""
    if end is None:
        return f"beyond {found.most:,}"
    return f"{end:,.0f}" if end > found.least else f"{found.least:,} or fewer"
