"""Every number of a report's verdict and answers, computed again from tables/*.csv alone, without the package."""

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats

from headstart.report import answers, findings
from headstart.report import build as report
from headstart.report.build import build_report
from study_folder import build_study

MARGIN, LEVEL = 0.01, 0.95
BASE, OWN = "pretrained", "scratch"


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    """A study of three seeds: what report.json says, and the rows of cells.csv."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_figures", lambda *_, **__: [])
        path = build_study(tmp_path_factory.mktemp("hand"), seeds=3, pictures=False, log_every=50, eval_every=300)
        build_report(path)
    with (path / "tables" / "cells.csv").open() as file:
        return json.loads((path / "report.json").read_text()), list(csv.DictReader(file))


def column(rows, arm, fraction, name="box.AP"):
    """[S, P] of a column over seeds and schedules, shortest first; with the steps of these, [P]."""
    table = defaultdict(dict)
    for row in rows:
        if (row["arm"], float(row["fraction"])) == (arm, fraction):
            table[int(row["seed"])][int(row["steps"])] = float(row[name])
    steps = sorted(table[0])
    return np.array(steps, float), np.array([[table[seed][step] for step in steps] for seed in sorted(table)])


def half_width(differences, level=LEVEL):
    return stats.t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(0, ddof=1) / np.sqrt(len(differences))


def outcome(differences):
    """Equivalence within the margin by two one-sided t tests, else a difference, two-sided at the same level."""
    error, free = differences.std(ddof=1) / np.sqrt(len(differences)), len(differences) - 1
    if max(stats.t.sf((MARGIN + s * differences.mean()) / error, free) for s in (1, -1)) <= 1 - LEVEL:
        return "equivalent"
    p = 2 * stats.t.sf(abs(differences.mean()) / error, free)
    return "not decidable" if p > 1 - LEVEL else "better" if differences.mean() > 0 else "worse"


def numbers(sentence):
    return [float(text.replace(",", "")) for text in re.findall(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?", sentence)]


def lines(summary, question):
    every = [*summary["answers"], *summary["answers_with_seconds"]]
    return next(a["lines"] for a in every if a["question"].startswith(question))


def test_every_verdict(found):
    summary, rows = found
    assert len(summary["comparisons"]) == 7
    for told in summary["comparisons"]:
        steps, base = column(rows, BASE, told["fraction"])
        _, own = column(rows, OWN, told["fraction"])
        place = list(steps).index(300 * float(told["schedule"][:-1]))
        differences = own[:, place] - base[:, place]
        assert told["mean"] == pytest.approx(differences.mean(), abs=1e-6)
        assert told["half_width"] == pytest.approx(half_width(differences), rel=1e-4)
        assert told["outcome"] == outcome(differences)
        level = 2 * LEVEL - 1 if told["outcome"] == "equivalent" else LEVEL
        half = half_width(differences, level)
        shown = [100 * differences.mean(), 100 * level]
        shown += [100 * (differences.mean() + sign * half) for sign in (-1, 1)]
        assert set(np.round(shown, 1)) <= set(np.round(numbers(told["sentence"]), 1))


def test_the_headline(found):
    summary, rows = found
    _, base = column(rows, BASE, 1.0)
    _, own = column(rows, OWN, 1.0)
    told = next(c for c in summary["comparisons"] if (c["schedule"], c["fraction"]) == ("6x", 1.0))
    p = told["p_margin"] if told["outcome"] == "equivalent" else told["p_difference"]
    value = f"= {p:.2g}" if p >= 0.001 else "< 0.001"
    sure = f"Decided at {100 * LEVEL:g} % by a paired t test over {len(base)} seeds (p {value})."
    assert summary["text"] == f"{told['sentence']} {sure}"
    titles = {"better": f"{OWN} ends ahead", "worse": f"{BASE} ends ahead", "equivalent": "Either start will do"}
    assert summary["title"] == titles[outcome(own[:, -1] - base[:, -1])] and summary["state"] == "decided"


def test_where_scratch_catches_up(found):
    summary, rows = found
    steps, base = column(rows, BASE, 1.0)
    _, own = column(rows, OWN, 1.0)
    x = np.linspace(steps[0], steps[-1], 60_001)
    lead = np.stack([np.interp(x, steps, seed) for seed in own - base])
    lead = lead + MARGIN
    half = half_width(lead)
    level = x[np.flatnonzero(lead.mean(0) < 0)[-1]]
    low = x[np.flatnonzero(lead.mean(0) + half >= 0)[0]]
    (sentence,) = lines(summary, "When does scratch catch up?")
    told = numbers(sentence)
    assert told[0] == 100 * MARGIN
    assert told[1] == pytest.approx(level, abs=1) and told[3] == pytest.approx(low, abs=3)  # steps, level, interval
    still_below = np.flatnonzero(lead.mean(0) - half < 0)[-1]
    assert ("beyond the budget" in sentence) == (still_below == len(x) - 1)


def test_what_the_start_is_worth_in_images(found):
    summary, rows = found
    images = sorted({float(row["train_images"]) for row in rows})
    fractions = sorted({float(row["fraction"]) for row in rows})
    tried = [column(rows, arm, f)[0].tolist() for f in fractions for arm in (BASE, OWN)]
    shared = max(set.intersection(*map(set, tried)))  # the longest that every number of images has
    assert shared < max(map(max, tried))

    def at_shared(arm, fraction):
        steps, scores = column(rows, arm, fraction)
        return scores[:, steps.tolist().index(shared)]

    ends = {arm: np.stack([at_shared(arm, f) for f in fractions], 1) for arm in (BASE, OWN)}
    x = np.geomspace(images[0], 2 * images[-1], 40_001)
    shapes = []  # straight in log images, which is the estimate, in images, and in their reciprocal
    for axis in (np.log, np.positive, np.reciprocal):
        share = (axis(x) - axis(images[0])) / (axis(images[1]) - axis(images[0]))
        shapes.append({arm: own[:, :1] + share * (own[:, 1:] - own[:, :1]) for arm, own in ends.items()})
    at = dict(zip(images, lines(summary, "How many labelled images")))
    for place, count in enumerate(images):
        leads = [curves[OWN] - ends[BASE][:, place : place + 1] + MARGIN for curves in shapes]
        first = [[x[np.flatnonzero(lead.mean(0) + z * half_width(lead) >= 0)[0]] for lead in leads] for z in (0, 1, -1)]
        needed, low, high = first[0][0], min(first[1]), max(first[2])
        told = numbers(at[count])
        assert told[0] == count and told[-2:] == [pytest.approx(needed, abs=1), 100 * MARGIN]
        if low > count:
            expected = [needed - count, 100 * LEVEL, low - count, high - count, 3]
            assert told[1:6] == pytest.approx(expected, rel=0.1)  # 1,000 resamples
        else:
            assert "is worth none" in at[count] and high < count
    crossing, schedule = lines(summary, "How many labelled images")[2:]
    assert schedule == "All this is at 3x, the longest schedule that every number of images has."
    ahead = (shapes[0][OWN] - shapes[0][BASE]).mean(0) + MARGIN
    assert numbers(crossing)[0] == pytest.approx(x[np.flatnonzero(ahead < 0)[-1]], abs=1)


def test_equal_efforts(found):
    summary, rows = found
    told = {entry["effort"]: entry for entry in [*summary["at_equal_effort"], *summary["at_equal_seconds"]]}
    assert set(told) == {"steps", *(f"{e}, pre-training included" for e in ("images", "pixels", "seconds"))}
    for effort, entry in told.items():
        scores, x = {}, {}
        for arm in (BASE, OWN):
            x[arm], scores[arm] = column(rows, arm, 1.0)
            if effort != "steps":
                kind = effort.split(",")[0]
                names = [f"seconds_{k}" for k in ("train", "eval", "other")] if kind == "seconds" else [kind]
                x[arm] = sum(column(rows, arm, 1.0, f"whole.{name}")[1].mean(0) for name in names)
        at = min(x[BASE][-1], x[OWN][-1])
        assert entry["at"] == pytest.approx(at, rel=1e-5)
        for arm, name in ((BASE, "baseline"), (OWN, "candidate")):
            mean = np.mean([np.interp(at, x[arm], seed) for seed in scores[arm]])
            assert entry[name] == pytest.approx(mean, abs=1e-5)


def test_whether_longer_training_hurts(found):
    summary, rows = found
    for arm in (BASE, OWN):
        steps, scores = column(rows, arm, 1.0)
        _, losses = column(rows, arm, 1.0, "train.loss")
        peak = scores.mean(0).argmax()
        if peak == len(steps) - 1:
            shared = lines(summary, "Does longer training hurt?")[-1]
            assert shared.startswith("Validation is best at the longest schedule tried: ")
            assert f"{arm} with all data (800 images)" in shared
            continue
        others = [np.delete(scores, seed, 0).mean(0).argmax() for seed in range(3)]
        falls = np.array([scores[seed, place] - scores[seed, -1] for seed, place in enumerate(others)])
        sentence = next(
            s
            for s in lines(summary, "Does longer training hurt?")
            if s.startswith(f"With all data (800 images), {arm}")
        )
        decided = falls.mean() - half_width(falls) > MARGIN and losses[:, peak].mean() > losses[:, -1].mean()
        assert ("overfits" in sentence) == decided
        told = numbers(sentence)
        assert steps[peak] in told
        for sign in (-1, 1):
            assert any(abs(100 * (falls.mean() + sign * half_width(falls)) - value) <= 0.051 for value in told)


def test_what_the_start_costs(found):
    summary, rows = found
    row = next(r for r in rows if (r["arm"], r["schedule"], r["fraction"]) == (BASE, "6x", "1.0"))
    before = float(row["whole.images"]) - float(row["alone.images"])
    text = " ".join(lines(summary, "What does the start cost?"))
    assert f"took {before:,.0f} images" in text
    for arm in (BASE, OWN):
        mine = [r for r in rows if (r["arm"], r["schedule"], r["fraction"]) == (arm, "6x", "1.0")]
        alone, whole = (np.mean([float(r[f"{way}.images"]) for r in mine]) for way in ("alone", "whole"))
        assert (
            f"{arm} at 6x: training takes {alone:,.0f} images" in text
            and f"total with pre-training {whole:,.0f} images" in text
        )


def test_what_other_test_images_would_say(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    generator = np.random.default_rng(0)
    drawn = generator.normal(-0.02, 0.004, (3, 400))
    monkeypatch.setattr(findings, "resampled_differences", lambda *_: (drawn, 12))
    moved = generator.normal(0, 0.2, (1, 2, 3, 200)) * np.ones((3, 1, 1, 1))
    monkeypatch.setattr(answers, "resampled_scores", lambda *_, number: (moved, 12))
    path = build_study(tmp_path, seeds=3, schedules=("1x",), fractions=(1.0, 0.5, 0.1), pictures=False, log_every=100)
    build_report(path)
    summary = json.loads((path / "report.json").read_text())
    with (path / "tables" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (path / "tables" / "resamples.csv").open() as file:
        means = np.array([np.mean([float(row[f"seed {s}"]) for s in range(3)]) for row in csv.DictReader(file)])
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    told = lines(summary, "How many labelled images")
    assert "95 % interval 0 to more than 1,520, 3 seeds and other test images" in told[0]  # 20 points of noise
    expected = []
    for arm in (BASE, OWN):
        fewest, middle, most = (100 * column(rows, arm, fraction)[1].mean() for fraction in (0.1, 0.5, 1.0))
        ahead = middle + (middle - fewest) * np.log(800 / 400) / np.log(400 / 80)
        ahead = ahead if middle > fewest else (middle + fewest) / 2  # curves never fall
        expected.append(f"{arm} {ahead:.1f} where {most:.1f} was measured")
    assert told[-1] == f"Curves fitted without the largest set (800 images) predicted: {'; '.join(expected)}."
    assert f"Resampling the test images alone gives {low:+.1f} to {high:+.1f} points" in summary["text"]
