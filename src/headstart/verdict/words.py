"""Sentences on results: quantity, comparison, size, uncertainty; differences in points (a hundredth of the metric)."""

from collections.abc import Sequence
from functools import singledispatch

from headstart.verdict.curves import Crossover, Overfit
from headstart.verdict.earned import BLIND
from headstart.verdict.looks import Look
from headstart.verdict.numbers import amount, counted, metric_name, points
from headstart.verdict.rule import Rule, looks_text, planned_looks
from headstart.verdict.verdict import Verdict

ONE_SEED = "1 seed, no interval"
NO_ANSWER = "No answer yet"
TESTS = {"t": "a paired t test", "sign_flip": "an exact sign-flip test"}


@singledispatch
def sentence(found: object) -> str:
    """Plain words for a verdict, crossover or overfitting, with numbers and interval."""
    raise TypeError(f"no sentence for {type(found).__name__}")


@sentence.register
def _verdict(verdict: Verdict) -> str:
    """`outcome` and `caveats` of a verdict."""
    return f"{outcome(verdict)} {caveats(verdict)}".strip()


def outcome(verdict: Verdict) -> str:
    """The decision in one sentence: metric, comparison, difference, interval; or why there is none yet."""
    rule, place = verdict.rule, f" {verdict.where}" if verdict.where else ""
    quantity = f"{metric_name(rule.metric)}{place}"
    quantity = quantity[0].upper() + quantity[1:]
    difference = f"difference {difference_text(verdict)}" if verdict.num_seeds else "no difference known"
    if verdict.obstacle:
        return f"{quantity}: no answer yet ({verdict.obstacle.reason}); {difference}."
    margin = margin_text(rule.margin)
    claim = {
        "better": f"{rule.candidate} is better than {rule.baseline}",
        "worse": f"{rule.candidate} is worse than {rule.baseline}",
        "equivalent": f"{rule.candidate} and {rule.baseline} are equivalent within {margin}",
        "not worse": f"{rule.candidate} is not worse than {rule.baseline} by more than {margin}",
    }[verdict.outcome]
    return f"{quantity}: {claim}, {difference}."


def until_then(verdict: Verdict) -> str:
    """The arm to use while there is no conclusion, by the mean difference; empty where that says nothing."""
    if not verdict.num_seeds or verdict.obstacle is None or verdict.obstacle.code in BLIND:
        return ""
    rule, where = verdict.rule, _at(verdict)
    size = f"{points(abs(verdict.mean), fine=_fine(verdict))[1:]} points"
    if verdict.is_small:
        reason = f"{where} the difference of {size} lies within the margin"
        return f"Until then use either: {reason}, with {counted(verdict.num_seeds, 'seed')}."
    leader = rule.candidate if verdict.mean > 0 else rule.baseline
    return f"Until then use {leader}: it is {size} ahead {where}, with {counted(verdict.num_seeds, 'seed')}."


def certainty(verdict: Verdict) -> str:
    """Test, level, seeds and p value of a decision; empty where there is none."""
    if verdict.obstacle is not None:
        return ""
    level, seeds = f"{100 * verdict.rule.look_level:g} %", counted(verdict.num_seeds, "seed")
    value = f"= {verdict.p:.2g}" if verdict.p >= 0.001 else "< 0.001"
    return f"Decided at {level} by {TESTS[verdict.rule.test]} over {seeds} (p {value})."


def caveats(verdict: Verdict) -> str:
    """Seeds that would decide, noise of the test images, seeds left out; empty where none applies."""
    number = verdict.num_left_out
    left_out = f"{counted(number, 'seed')} left out: no score in both arms." if number else ""
    return " ".join(part for part in (_seeds_needed(verdict), _image_noise(verdict), left_out) if part)


def title(verdict: Verdict, *, starts_differ: bool) -> tuple[str, str | None]:
    """Title of a verdict, and the arm that it begins with (None: neither)."""
    candidate, baseline = verdict.rule.candidate, verdict.rule.baseline
    if verdict.obstacle:
        return f"{NO_ANSWER}: {verdict.obstacle.title}", None
    ahead = "ends ahead"
    if verdict.rule.scope == "schedule":
        ahead = f"is ahead {_at(verdict)}"
    return {
        "better": (f"{candidate} {ahead}", candidate),
        "worse": (f"{baseline} {ahead}", baseline),
        "equivalent": ("Either start will do" if starts_differ else "Either will do", None),
        "not worse": (f"{candidate} is not worse", candidate),
    }[verdict.outcome]


def margin_text(margin: float) -> str:
    """A margin in points: "1 point", "2 points"."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def rule_sentence(rule: Rule, looks: Sequence[Look] = ()) -> str:
    """The decision rule as fixed before the first run, or changed after one of these looks."""
    is_changed = any(look.alpha != rule.alpha or look.rule not in (None, rule.claim) for look in looks)
    margin = margin_text(rule.margin)
    claim = {
        "equivalence": f"whether {rule.candidate} and {rule.baseline} differ by less than {margin}",
        "non_inferiority": f"whether {rule.candidate} is not worse than {rule.baseline} by more than {margin}",
        "superiority": f"whether one of {rule.candidate} and {rule.baseline} is better by more than {margin}",
    }[rule.kind]
    how = f"at {100 * rule.level:g} % by {TESTS[rule.test]} over at least {rule.min_seeds} seeds"
    if rule.looks:
        how += f", in {planned_looks(rule) if is_changed else looks_text(rule)}"
    if rule.scope == "schedule":
        how += ", for training of this length"
    written = "changed after a look" if is_changed else "written before the first run"
    return f"The rule, {written}: in {metric_name(rule.metric)}, {claim}, {how}."


@sentence.register
def _crossover(found: Crossover) -> str:
    """Point from which the candidate stays within the margin or ahead, with the interval over seeds."""
    near = f"within {margin_text(found.within)} of" if found.within else "level with"
    if found.x is None:
        budget = f"the {amount(found.budget)} steps tried"
        never, fell_back = f"come {near} {found.baseline} in", f"stay {near} {found.baseline} up to the end of"
        claim = f"{found.candidate} does not {fell_back if found.reached else never} {budget}"
    elif found.x == found.start:
        first = f"the first point ({amount(found.start)})"
        claim = f"{found.candidate} is {near} {found.baseline} or ahead from {first}"
    else:
        claim = f"{found.candidate} comes {near} {found.baseline} at about {amount(found.x)} steps"
    if found.low is None and not found.indicative:
        return f"{claim}; {crossing_interval(found)}."
    return f"{claim} ({crossing_interval(found)})."


def crossing_interval(found: Crossover) -> str:
    """The interval of a crossover over seeds, or that one seed has none."""
    if found.indicative:
        return ONE_SEED
    level, seeds = f"{100 * found.level:g} %", counted(found.num_seeds, "seed")
    if found.low is None:
        return f"an earlier crossing is excluded ({level}, {seeds})"
    end = "beyond the budget" if found.high is None else amount(found.high)
    return f"{level} interval {amount(found.low)} to {end}, {seeds}"


@sentence.register
def _overfit(found: Overfit) -> str:
    """Sentence on overfitting of an arm, and its onset."""
    where = f"{amount(found.onset)} steps"
    fall = f"{points(found.fall)[1:]} points" if found.fall > 0 else "nothing"
    best = f"validation is best at {where} and loses {fall} by the end"
    if found.indicative:
        return f"{found.arm}: {best} ({ONE_SEED})."
    interval = _interval(found.fall, found.half_width, found.level, found.num_seeds)
    if not found.decided:
        return f"{found.arm}: no overfitting shown; {best} ({interval})."
    gain = f"training images gain {points(found.train_gain)[1:]} points"
    meanwhile = gain if found.judged else f"the training loss still falls by {found.train_gain:.2g}"
    return f"{found.arm} overfits from about {where} on: validation loses {fall} by the end ({interval}), {meanwhile}."


def gap_sentence(arm: str, schedule: str, *, mean: float, half_width: float, level: float, num_seeds: int) -> str:
    """Generalisation gap: score on training images minus score on validation images, in 0..1."""
    uncertainty = ONE_SEED if num_seeds == 1 else _interval(mean, half_width, level, num_seeds)
    return f"{arm} at {schedule}: generalisation gap {points(mean)} points, training minus validation ({uncertainty})."


def difference_text(verdict: Verdict) -> str:
    """The mean difference in points with its interval, or that one seed has none."""
    fine = _fine(verdict)
    size = points(verdict.mean, fine=fine)
    if verdict.num_seeds == 1:
        return f"{size} points ({ONE_SEED})"
    test = f", sign-flip p = {verdict.p:.3g}" if verdict.rule.test == "sign_flip" else ""
    return f"{size} points ({_interval(verdict.mean, *verdict.interval, verdict.num_seeds, fine=fine)}{test})"


def _interval(mean: float, half_width: float, level: float, num_seeds: int, *, fine: bool = False) -> str:
    low, high = (points(mean + sign * half_width, fine=fine) for sign in (-1, 1))
    return f"{100 * level:g} % interval {low} to {high}, {counted(num_seeds, 'seed')}"


def _seeds_needed(verdict: Verdict) -> str:
    if verdict.obstacle is None or verdict.obstacle.code != "open":
        return ""
    observed = "at the observed mean and standard deviation"
    if verdict.seeds_to_decide is None:
        return f"More seeds will not settle this: over {verdict.rule.most_seeds:,} would be needed {observed}."
    return f"About {counted(verdict.seeds_to_decide, 'seed')} would decide {observed}."


def _image_noise(verdict: Verdict) -> str:
    if verdict.images is None:
        return ""
    low, high = (points(side, fine=_fine(verdict)) for side in (verdict.images.low, verdict.images.high))
    moves = f"Resampling the test images alone gives {low} to {high} points"
    if verdict.holds_for_other_images is None:
        return f"{moves}."
    if verdict.holds_for_other_images:
        return f"{moves}; the conclusion also holds with this noise added."
    more = f", about {verdict.images_to_decide:,} test images would settle it" if verdict.images_to_decide else ""
    return f"{moves}; with this noise added the conclusion is not certain{more}."


def _at(verdict: Verdict) -> str:
    """The schedule of a verdict, without the amount of data: "at 6x"."""
    return verdict.where.partition(" with ")[0]


def _fine(verdict: Verdict) -> bool:
    """True where one decimal would hide the margin, or an interval that excludes what contradicts the outcome."""
    is_close = verdict.obstacle is None and verdict.distance - verdict.interval[0] < 0.0005
    return 0 < verdict.rule.margin < 0.005 or is_close
