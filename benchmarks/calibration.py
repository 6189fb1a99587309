"""Does the verdict err as rarely as its level promises? Simulated studies with a known truth, as a table.

    python benchmarks/calibration.py [number of studies a setting] [--looks [--json FILE]] [--page]

2,000 studies without a number. `--looks` makes the figures on looks alone, `--page` only writes the tables of
docs/results.md from those kept in docs/results/calibration/looks.json.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from math import sqrt
from pathlib import Path

import numpy as np
from record import ROOT, keep, rewritten, source
from simulate import Setting, crossover_coverage, simulate, simulate_looks, wrong_for_other_images

from headstart.verdict.rule import Rule, fewest_seeds

MARGIN = 0.01
OUTCOMES = ("better", "worse", "equivalent", "not worse", "not decidable")
LOOKS = {"t": (3, 5, 8), "sign_flip": (7, 8, 10)}  # sign flips decide from 7 seeds on at three looks
NOISES = {
    "normal": ("normal",),
    "skewed arms": ("skewed",),
    "heavy tails": ("heavy",),
    "skewed differences": ("right", "left"),
}
BOUNDARIES = {"equivalence": (0.0, -MARGIN, MARGIN), "non_inferiority": (0.0, -MARGIN), "superiority": (0.0,)}
SPREADS = (0.002, 0.005, 0.02)  # one arm's seed sd, from far below the margin to far above
EFFECTS = (0.0, 0.005, 0.02, 0.04)  # true differences of the table of seeds saved
ALLOWED = 0.055  # the level plus half a percent
KEPT, PAGE = ROOT / "docs" / "results" / "calibration" / "looks.json", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- tables: python benchmarks/calibration.py --page -->\n", "<!-- end of tables of looks -->\n"

WORLDS = (
    ("identical arms", 0.0, {}),
    ("difference = -margin", -MARGIN, {}),
    ("difference = +margin", MARGIN, {}),
    ("identical arms, skewed noise", 0.0, {"noise": "skewed"}),
    ("identical arms, heavy tails", 0.0, {"noise": "heavy"}),
    ("identical arms, small spread", 0.0, {"seed_sd": 0.002}),
    ("-margin, small spread", -MARGIN, {"seed_sd": 0.002}),
    ("-margin, paired luck shared", -MARGIN, {"correlation": 0.7}),
)


def rule_of(test: str, kind: str, looks: tuple[int, ...] = ()) -> Rule:
    """The rule of a row; for superiority any difference counts, so that identical arms are its boundary."""
    margin = 0.0 if kind == "superiority" else MARGIN
    arms = {"baseline": "pretrained", "candidate": "scratch"}
    return Rule(metric="box.AP", **arms, margin=margin, test=test, kind=kind, looks=looks)


def settings():
    """(label, setting) of every row; seed counts that the plan would refuse are left out."""
    for test in ("t", "sign_flip"):
        for kind, worlds in (("equivalence", WORLDS), ("non_inferiority", WORLDS[:4]), ("superiority", WORLDS[:4])):
            rule = rule_of(test, kind)
            for label, truth, world in worlds:
                for num_seeds in (3, 5, 8):
                    if num_seeds >= fewest_seeds(rule):
                        setting = Setting(rule=rule, num_seeds=num_seeds, true_difference=truth, **world)
                        yield f"{test:9} {kind:15} {label}", setting


def verdict_rows(num_studies: int, generator: np.random.Generator) -> int:
    """Print a row a setting; the number with normal noise whose wrong claims exceed 5 % by 4 standard errors."""
    broken = 0
    print(f"{'test      kind            truth':56} seeds  wrong  covers  better  worse  equiv.  not worse  undecided")
    for label, setting in settings():
        rates = simulate(setting, num_studies, generator)
        broken += setting.noise == "normal" and rates.wrong > 0.05 + 4 * rates.error
        shares = [f"{100 * rates.outcomes.get(name, 0):5.1f}" for name in OUTCOMES]
        print(
            f"{label:56} {setting.num_seeds:5}  {100 * rates.wrong:5.1f}  {100 * rates.covered:6.1f}  {shares[0]:>6}  "
            f"{shares[1]:>5}  {shares[2]:>6}  {shares[3]:>9}  {shares[4]:>9}"
        )
    return broken


def image_rows(num_studies: int, generator: np.random.Generator) -> int:
    """Print what claims would be worth on other test images, unguarded and where the verdict says that they hold."""
    broken = 0
    print("\nclaims read as being about other test images (equivalence, t), which move the mean by sd 0.005")
    print(f"{'truth':56} seeds  wrong if unguarded  wrong and said to hold  right and said to hold")
    for label, truth in (("identical arms", 0.0), ("difference = -margin", -MARGIN)):
        for num_seeds in (3, 5, 8):
            setting = Setting(
                rule=rule_of("t", "equivalence"), num_seeds=num_seeds, true_difference=truth, image_sd=0.005
            )
            plain = simulate(setting, num_studies, generator).wrong
            wrong, right = wrong_for_other_images(setting, num_studies, generator)
            broken += wrong > 0.05 + 4 * sqrt(0.05 * 0.95 / num_studies)
            print(f"{label:56} {num_seeds:5}  {100 * plain:18.1f}  {100 * wrong:22.1f}  {100 * right:22.1f}")
    return broken


def crossover_rows(num_studies: int, generator: np.random.Generator) -> int:
    """Print how often the interval of a crossing holds the true one."""
    broken = 0
    print("\ncrossover: the 95 % interval holds the true crossing")
    for num_seeds in (3, 5, 8):
        covered = crossover_coverage(num_seeds, num_studies, generator)
        broken += covered < 0.95 - 4 * sqrt(0.05 * 0.95 / num_studies)
        print(f"{'scratch meets a flat curve at 5.5 of 2..8':56} {num_seeds:5}  {100 * covered:5.1f}")
    return broken


def look_figures(num_studies: int, generator: np.random.Generator) -> dict:
    """Wrong claims with planned looks, and at the same seeds without; seeds and decisions at true differences."""
    rows, effects = [], []
    for test, looks in LOOKS.items():
        for kind, truths in BOUNDARIES.items():
            plain = rule_of(test, kind)
            rules = {"planned": (rule_of(test, kind, looks), looks), "unplanned": (plain, looks)}
            rules["once"] = (plain, looks[-1:])
            for noise in (own for group in NOISES.values() for own in group):
                for truth in truths:
                    for spread in SPREADS if kind != "superiority" else SPREADS[:1]:  # at margin 0 nothing has a scale
                        row = {"test": test, "kind": kind, "noise": noise, "truth": truth, "seed_sd": spread}
                        for name, (rule, counts) in rules.items():
                            world = {"true_difference": truth, "seed_sd": spread, "noise": noise}
                            setting = Setting(rule=rule, num_seeds=looks[-1], **world)
                            row[name] = simulate_looks(setting, counts, num_studies, generator).wrong
                        rows.append(row)
    for kind in BOUNDARIES:
        for truth in EFFECTS:
            rules = {"planned": (rule_of("t", kind, LOOKS["t"]), LOOKS["t"]), "once": (rule_of("t", kind), (8,))}
            row = {"kind": kind, "truth": truth}
            for name, (rule, counts) in rules.items():
                setting = Setting(rule=rule, num_seeds=8, true_difference=truth)
                row[name] = asdict(simulate_looks(setting, counts, num_studies, generator))
            effects.append(row)
    nominal = {f"{t} {kind}": rule_of(t, kind, looks).alpha for t, looks in LOOKS.items() for kind in BOUNDARIES}
    return {"studies": num_studies, "looks": LOOKS, "nominal": nominal, "wrong": rows, "effects": effects}


def look_tables(figures: dict) -> str:
    """The tables of looks as Markdown, and what exceeds the level by more than half a percent."""

    def worst(kind: str, group: str, test: str, name: str) -> float:
        keys = (test, kind)
        own = [r[name] for r in figures["wrong"] if (r["test"], r["kind"]) == keys and r["noise"] in NOISES[group]]
        return max(own)

    columns = []
    for test, looks in figures["looks"].items():
        name = test.replace("_", " ")
        columns += [
            f"{name}, planned looks at {', '.join(map(str, looks))}",
            "the same at 5 % each",
            f"once at {looks[-1]}",
        ]
    lines = [f"| wrong claims in %, the worst setting | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    beyond = []
    for kind in BOUNDARIES:
        for group in NOISES:
            names = ("planned", "unplanned", "once")
            found = {(test, name): worst(kind, group, test, name) for test in LOOKS for name in names}
            lines.append(f"| {kind}, {group} | {' | '.join(f'{100 * share:.1f}' for share in found.values())} |")
            over = {test: found[test, "planned"] for test in LOOKS if found[test, "planned"] > ALLOWED}
            beyond += [f"{test.replace('_', ' ')}, {kind}, {group}: {100 * v:.1f} %" for test, v in over.items()]
    told = f"Beyond {100 * ALLOWED:g} % with planned looks: {'; '.join(beyond) or 'none'}."
    nominal = {test: sorted({100 * v for n, v in figures["nominal"].items() if n.startswith(test)}) for test in LOOKS}
    rates = ", ".join(f"{' and '.join(f'{v:.3g}' for v in own)} % ({test})" for test, own in nominal.items())
    head = (
        "| kind, true difference | decided at 3, 5, 8 seeds | at 8 seeds only | right: looks, 8 only | seeds | saved |"
    )
    rows = [head, "|---|" + "---|" * 5]
    for row in figures["effects"]:
        planned, once = row["planned"], row["once"]
        shares = " / ".join(f"{100 * share:.0f}" for share in planned["decided"])
        right = f"{100 * planned['right']:.0f}, {100 * once['right']:.0f}"
        rows.append(
            f"| {row['kind']}, {100 * row['truth']:+.1f} | {shares} | {100 * sum(once['decided']):.0f} | {right} | "
            f"{planned['seeds']:.1f} | {8 - planned['seeds']:.1f} |"
        )
    return (
        f"Nominal error rate of each look: {rates}.\n\n" + "\n".join(lines) + f"\n\n{told}\n\n"
        "t test, one arm's seed standard deviation 0.5 points, margin 1 point (0 for superiority); shares in %:\n\n"
        + "\n".join(rows)
        + "\n"
    )


def page_text(page: str, kept: dict) -> str:
    """The page with the tables of the kept figures between its marks."""
    figures = kept["figures"]
    return rewritten(
        page, BEGIN, END, f"{source(kept)}; {figures['studies']:,} studies a setting.\n\n{look_tables(figures)}"
    )


def main() -> None:
    """Print the tables; exit 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=int, nargs="?", default=2_000)
    parser.add_argument("--looks", action="store_true", help="only the tables of looks")
    parser.add_argument("--json", type=Path, help="with --looks: keep their figures in this file")
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/results.md")
    given = parser.parse_args()
    if given.page:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")
        return
    num_studies = given.studies
    if given.looks:
        figures = look_figures(num_studies, np.random.default_rng(20190211))
        keep(given.json, figures)
        print(look_tables(figures))
        return
    generator = np.random.default_rng(20190211)
    started = time.perf_counter()
    print(f"{num_studies:,} studies a setting, margin {MARGIN}, level 95 %, one arm's seed sd 0.005 unless said; in %")
    parts = (verdict_rows, image_rows, crossover_rows)
    broken = sum(part(num_studies, generator) for part in parts)
    print("\nlooks\n" + look_tables(look_figures(num_studies, generator)))
    print(f"\n{broken} settings beyond what the level promises; {time.perf_counter() - started:.1f} s")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
