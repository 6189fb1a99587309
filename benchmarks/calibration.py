"""Does the verdict err as rarely as its level promises? Simulated studies with a known truth, as a table.

python benchmarks/calibration.py [number of studies a setting] (2,000 without it; seconds on one core)
"""

import sys
import time
from math import sqrt

import numpy as np
from simulate import Setting, crossover_coverage, simulate, wrong_for_other_images

from headstart.verdict.rule import Rule, fewest_seeds

MARGIN = 0.01
OUTCOMES = ("better", "worse", "equivalent", "not worse", "not decidable")


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


def rule_of(test: str, kind: str) -> Rule:
    """The rule of a row; for superiority any difference counts, so that identical arms are its boundary."""
    margin = 0.0 if kind == "superiority" else MARGIN
    return Rule(metric="box.AP", baseline="pretrained", candidate="scratch", margin=margin, test=test, kind=kind)


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


def main() -> None:
    """Print the tables; exit 1 where a promise is broken."""
    num_studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    generator = np.random.default_rng(20190211)
    started = time.perf_counter()
    print(f"{num_studies:,} studies a setting, margin {MARGIN}, level 95 %, one arm's seed sd 0.005 unless said; in %")
    parts = (verdict_rows, image_rows, crossover_rows)
    broken = sum(part(num_studies, generator) for part in parts)
    print(f"\n{broken} settings beyond what the level promises; {time.perf_counter() - started:.1f} s")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
