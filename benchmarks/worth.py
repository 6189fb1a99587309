"""Does the interval of a start's worth in labelled images hold the truth? Simulated studies, and held-out real points.

    python benchmarks/worth.py [number of studies a setting] [--json FILE] [--page]

150 studies without a number: about two minutes of one core. `--page` only writes the tables of docs/results.md, from
docs/results/calibration/worth.json and the real studies of three or more numbers of images.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from calibration import PAGE
from record import ROOT, keep, rewritten, source
from simulate_worth import IMAGES, LEVEL, MARGIN, NOISES, SEEDS, WORLDS, means_covered, settings, simulate
from studies import read_kept

from headstart.recipe.yaml_text import read_yaml
from headstart.verdict.worth import crossing_sentence, held_out, schedules_compared, start_worth, worth_sentence

KEPT = ROOT / "docs" / "results" / "calibration" / "worth.json"
BEGIN, END = "<!-- tables: python benchmarks/worth.py --page -->\n", "<!-- end of tables of worth -->\n"
PROMISED = 0.90  # of a nominal 95 %


def figures_of(num_studies: int) -> dict:
    """All simulated figures, and the processor time that they took."""
    random, started = np.random.default_rng(20190211), time.process_time()
    rows = [asdict(simulate(*setting, num_studies, random)) for setting in settings()]
    means = means_covered(10 * num_studies, random)
    return {"studies": num_studies, "rows": rows, "means": means, "seconds": round(time.process_time() - started)}


def tables(figures: dict) -> str:
    """The tables of coverage as Markdown, and every setting below the promise."""
    rows = figures["rows"]
    heads = [f"{', '.join(map(str, images))} images, {seeds} seeds" for images in IMAGES for seeds in SEEDS]
    lines = [f"| worth: truth | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for world in WORLDS:
        own = [[r for r in rows if key(r) == (world, images, seeds)] for images in IMAGES for seeds in SEEDS]
        cells = [f"{percent(min(worst(r) for r in group))}, {percent(worst_crossing(group))}" for group in own]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    lines += ["", "| noise | the worst | mean | closed above | upper end / lower end |", "|---|---|---|---|---|"]
    for noise in NOISES:
        own = [row for row in rows if row["noise"] == noise]
        known = [np.array([value is not None for value in row["truth"]]) for row in own]
        every = {name: [np.array(row[name])[ok] for row, ok in zip(own, known)] for name in ("covered", "closed")}
        mean, closed = (np.concatenate(shares).mean() for shares in every.values())
        ratio = np.median([row["ratio"] for row in own if row["ratio"] is not None])
        least = min(min(row["covered"]) for row in own)
        lines.append(f"| {noise} | {percent(least)} | {percent(mean)} | {percent(closed)} | {ratio:.2f} |")
    missed = [
        f"{row['world']}, {', '.join(map(str, row['images']))} images, {row['seeds']} seeds, {row['noise']}: "
        f"{percent(min(row['covered']))} %"
        for row in rows
        if min(row["covered"]) < PROMISED
    ]
    means = "; ".join(
        f"{row['seeds']} seeds {percent(row['ours'])} % (drawing seeds with replacement: {percent(row['drawn'])} %)"
        for row in figures["means"]
    )
    told = f"Missed, below {percent(PROMISED)} %: {'; '.join(missed) or 'none'}."
    return "\n".join(lines) + f"\n\n{told}\n\nThe mean of one cell alone is held in: {means}.\n"


def key(row: dict) -> tuple:
    """World, numbers of images and seeds of a kept row."""
    return row["world"], tuple(row["images"]), row["seeds"]


def worst(row: dict) -> float:
    """The lowest coverage of the worth over the numbers of images."""
    return min(row["covered"][:-1])


def worst_crossing(rows: list[dict]) -> float:
    return min(row["covered"][-1] for row in rows)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def real_studies() -> dict[str, tuple[tuple[str, str], list[int], np.ndarray]]:
    """Studies of three or more numbers of images: arms, images and scores [S, 2, F]; the paper's as it prints them."""
    printed = read_yaml(ROOT / "src" / "headstart" / "report" / "paper.yaml")
    subsets, arms = {"1k": 1_000, "3.5k": 3_500, "10k": 10_000, "35k": 35_000}, ("pre-trained", "random")
    printed = [printed[name]["box.AP"] for name in subsets]
    rows = [{row.partition(",")[0]: max(own.values()) for row, own in each.items()} for each in printed]
    scores = np.array([[[row[arm] for row in rows] for arm in arms]])
    found = {"the paper's subsets of COCO": (arms, list(subsets.values()), scores)}
    for name, study in read_kept().items():
        figures = study["figures"]
        pair = tuple(dict.fromkeys(cell["arm"] for cell in figures["cells"]))[1::-1]  # scratch is named first
        cells = sorted((cell for cell in figures["cells"] if cell["arm"] in pair), key=lambda cell: cell["total"])
        cells = [cell for cell in cells if str(cell["total"]) in cell["values"]]
        ended = {(c["seed"], c["arm"], c["fraction"], c["schedule"]): c["values"][str(c["total"])] for c in cells}
        tried: dict[float, dict[str, set]] = {}  # by fraction and schedule, shortest first: arms
        for cell in cells:
            tried.setdefault(cell["fraction"], {}).setdefault(cell["schedule"], set()).add(cell["arm"])
        common = {f: [name for name, own in tried[f].items() if own == set(pair)] for f in sorted(tried)}
        shared = [fraction for fraction, names in common.items() if names]
        if len(shared) < 3 or len(pair) != 2:
            continue
        used = list(zip(shared, schedules_compared([common[fraction] for fraction in shared])))
        every = [[(seed, arm, *cell) for arm in pair for cell in used] for seed in sorted({key[0] for key in ended})]
        scores = [[ended[key] for key in keys] for keys in every if all(key in ended for key in keys)]
        if scores:
            images = [figures["images"][str(fraction)] for fraction in shared]
            found[f"the study `{name}`"] = (pair, images, np.reshape(scores, (-1, 2, len(shared))))
    return found


def held_out_table() -> str:
    """Scores that curves without the largest set predicted, for each prefix of a study's numbers of images."""
    lines = ["| study | fitted on | predicted for | arm | predicted | measured |", "|---|---|---|---|---|---|"]
    for name, (arms, images, scores) in real_studies().items():
        for number in range(3, len(images) + 1):
            for each in held_out(arms, images[:number], scores[..., :number]):
                fitted = ", ".join(f"{n:,}" for n in images[: number - 1])
                told = f"{100 * each.predicted:.1f} | {100 * each.measured:.1f}"
                lines.append(f"| {name} | {fitted} | {each.images:,} | {each.arm} | {told} |")
    return "\n".join(lines) + "\n"


def real_worth() -> str:
    """Sentences of the report on the real studies."""
    parts = []
    for name, (arms, images, scores) in real_studies().items():
        found = start_worth(arms, images, scores, level=LEVEL, within=MARGIN)
        lines = [*(worth_sentence(found, number) for number in images), crossing_sentence(found)]
        parts.append("\n".join([f"{name[0].upper()}{name[1:]}:\n", *(f"- {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def page_text(page: str, kept: dict) -> str:
    """The page with the tables of the kept figures between its marks."""
    figures = kept["figures"]
    made = f"{source(kept)}; {figures['studies']:,} studies a setting, {figures['seconds']} s of processor time."
    return rewritten(page, BEGIN, END, f"{made}\n\n{tables(figures)}\n{held_out_table()}\n{real_worth()}")


def main() -> None:
    """Print the tables; exit 1 where an interval holds the truth more rarely than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=int, nargs="?", default=150)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/results.md")
    given = parser.parse_args()
    if given.page:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")
        return
    figures = figures_of(given.studies)
    keep(given.json, figures)
    print(tables(figures), held_out_table(), real_worth(), sep="\n")
    sys.exit(any(min(row["covered"]) < PROMISED for row in figures["rows"]))


if __name__ == "__main__":
    main()
