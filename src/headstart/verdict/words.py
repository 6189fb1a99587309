"""Sentences on results, with their numbers in points (a hundredth of the metric)."""

from functools import singledispatch
from math import isnan

from headstart.verdict.curves import Crossover, ImagesWorth, Overfit
from headstart.verdict.numbers import amount, counted, points
from headstart.verdict.verdict import Verdict


@singledispatch
def sentence(found: object) -> str:
    """A verdict, crossover, worth in images or overfitting in plain words, with numbers and interval."""
    raise TypeError(f"no sentence for {type(found).__name__}")


@sentence.register
def _verdict(verdict: Verdict) -> str:
    """A verdict as one to four sentences: the outcome, what it would take, what other images could change."""
    parts = [_outcome(verdict), _what_it_takes(verdict), _other_images(verdict), _left_out(verdict)]
    return " ".join(part for part in parts if part)


@sentence.register
def _crossover(found: Crossover) -> str:
    """Where one arm catches up with another, with the interval over seeds."""
    budget = f"the {amount(found.budget)} {found.axis} tried"
    if found.x is None:
        claim = f"{found.candidate} does not catch up with {found.baseline} within {budget}"
    elif found.x == found.start:
        claim = (
            f"{found.candidate} is level with {found.baseline} or ahead from the first point ({amount(found.start)})"
        )
    else:
        claim = f"{found.candidate} catches up with {found.baseline} at about {amount(found.x)} {found.axis}"
    if found.indicative:
        return f"{claim} (1 seed, indicative only)."
    level = f"{100 * found.level:g} %"
    seeds = counted(found.num_seeds, "seed")
    if found.low is None:
        return f"{claim}; at {level} over {seeds} a crossing before that is ruled out."
    end = "beyond the budget" if found.high is None else f"{amount(found.high)}"
    return f"{claim} ({level} interval {amount(found.low)} to {end}, {seeds})."


@sentence.register
def _images_worth(found: ImagesWorth) -> str:
    """What a start is worth in labelled images, with the interval over seeds."""
    have = f"{found.baseline} with {found.images:,} labelled images"
    if found.needed is None:
        claim = f"{found.candidate} does not reach {have}, not even with {found.most:,}"
        worth = f"the start is worth more than {found.most - found.images:,} images there"
    elif found.needed <= found.least:
        least = "as many" if found.least == found.images else f"{found.least:,} or fewer"
        claim, worth = f"{found.candidate} with {least} does as well as {have}", "the start is worth none there"
    else:
        claim = f"{found.candidate} needs about {found.needed:,.0f} labelled images to do as well as {have}"
        more = found.needed - found.images
        worth = f"the start is worth about {more:,.0f} images there" if more > 0 else "the start is worth none there"
    if found.indicative:
        return f"{claim}: {worth} (1 seed, indicative only)."
    low = f"more than {found.most:,}" if found.low is None else f"{found.low:,.0f}"
    high = f"more than {found.most:,}" if found.high is None else f"{found.high:,.0f}"
    between = low if low == high else f"{low} to {high}"
    interval = f"{100 * found.level:g} % interval of the images needed: {between}"
    return f"{claim}: {worth} ({interval}, {counted(found.num_seeds, 'seed')})."


@sentence.register
def _overfit(found: Overfit) -> str:
    """Whether and where an arm overfits."""
    where = f"{amount(found.onset)} {found.axis}"
    fall = f"{points(found.fall)[1:]} points" if found.fall > 0 else "nothing"
    if found.indicative:
        return f"{found.arm}: validation is best at {where} and loses {fall} by the end (1 seed, indicative only)."
    low, high = (points(found.fall + sign * found.half_width) for sign in (-1, 1))
    interval = f"{100 * found.level:g} % interval {low} to {high}, {counted(found.num_seeds, 'seed')}"
    if found.decided:
        gain = f"training images gain {points(found.train_gain)[1:]} points"
        meanwhile = gain if found.judged else f"the training loss still falls by {found.train_gain:.2g}"
        claim = f"{found.arm} overfits from about {where} on: validation loses {fall} by the end"
        return f"{claim} ({interval}), {meanwhile}."
    return f"{found.arm}: no overfitting shown; validation is best at {where} and loses {fall} by the end ({interval})."


def _outcome(verdict: Verdict) -> str:
    if verdict.num_seeds and verdict.indicative:
        return _indicative(verdict)
    rule, place = verdict.rule, f" {verdict.where}" if verdict.where else ""
    metric = f"in {rule.metric}{place}"
    margin = f"{points(rule.margin, fine=_fine(verdict))[1:]} points"
    claim = {
        "better": f"{rule.candidate} is better than {rule.baseline} {metric}",
        "worse": f"{rule.candidate} is worse than {rule.baseline} {metric}",
        "equivalent": f"{rule.candidate} and {rule.baseline} are equivalent {metric}, within {margin}",
        "not worse": f"{rule.candidate} is not worse than {rule.baseline} {metric} by more than {margin}",
        "not decidable": f"Not decidable whether {rule.candidate} differs from {rule.baseline} {metric}",
    }[verdict.outcome]
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{claim}{reason}: {_numbers(verdict)}."


def _indicative(verdict: Verdict) -> str:
    rule, place = verdict.rule, f" {verdict.where}" if verdict.where else ""
    side = "ahead of" if verdict.mean > 0 else "behind"
    amount = points(abs(verdict.mean), fine=_fine(verdict))[1:]
    standing = f"{amount} points {side}" if verdict.mean else "level with"
    interval = "" if verdict.num_seeds == 1 else f" ({_numbers(verdict)})"
    return (
        f"Indicative, not decided ({verdict.reason}): {rule.candidate} is {standing} {rule.baseline} "
        f"in {rule.metric}{place}{interval}."
    )


def _numbers(verdict: Verdict) -> str:
    if not verdict.num_seeds:
        return "there is nothing to compare"
    difference = f"difference {points(verdict.mean, fine=_fine(verdict))} points"
    by_margin = verdict.outcome in ("equivalent", "not worse")
    half, level = (
        (verdict.margin_half_width, 1 - 2 * verdict.rule.alpha)
        if by_margin
        else (verdict.half_width, verdict.rule.level)
    )
    low, high = (points(verdict.mean + sign * half, fine=_fine(verdict)) for sign in (-1, 1))
    test = ""
    if verdict.rule.test == "sign_flip":
        test = f", sign-flip p = {verdict.p_margin if by_margin else verdict.p_difference:.3g}"
    interval = f"{100 * level:g} % interval {low} to {high}"
    return f"{difference}, {interval} over {counted(verdict.num_seeds, 'seed')}{test}"


def _what_it_takes(verdict: Verdict) -> str:
    if verdict.outcome != "not decidable" or not verdict.num_seeds:
        return ""
    if isnan(verdict.sd):
        return "How much another seed would differ is not known from one."
    if verdict.seeds_to_decide is None:
        return "More than 1,000 seeds would be needed if mean and spread stay as seen: not a matter of seeds."
    return f"About {counted(verdict.seeds_to_decide, 'seed')} would decide, if mean and spread stay as seen."


def _other_images(verdict: Verdict) -> str:
    if verdict.images is None:
        return ""
    low, high = (points(side, fine=_fine(verdict)) for side in (verdict.images.low, verdict.images.high))
    moves = f"Resampling the test images alone gives {low} to {high} points"
    if verdict.holds_for_other_images is None:
        return f"{moves}."
    if verdict.holds_for_other_images:
        return f"{moves}; the outcome also stands for other images of this kind."
    more = f", about {verdict.images_to_decide:,} test images would settle it" if verdict.images_to_decide else ""
    return f"{moves}; for other images of this kind the outcome is not certain{more}."


def _left_out(verdict: Verdict) -> str:
    if not verdict.num_left_out:
        return ""
    return f"{counted(verdict.num_left_out, 'seed')} left out for want of a score in both arms."


def _fine(verdict: Verdict) -> bool:
    return 0 < verdict.rule.margin < 0.005  # below half a point one decimal would hide the margin itself
