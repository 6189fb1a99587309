"""Make the tables of docs/performance.md from the figures kept in docs/results/performance.

    python benchmarks/performance.py [--add KIND]

One folder there is one kind of processor, one JSON file in it one command. `--add KIND` first copies what `make bench`
left in runs/bench. The tables replace the text between the two marks in docs/performance.md.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from record import ROOT
from step import BACKBONE_GOAL, GOALS, INFERENCE_GOALS

KEPT = ROOT / "docs" / "results" / "performance"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- tables: python benchmarks/performance.py -->\n", "<!-- end of tables -->\n"
NAMES = {
    "demo": "the demo's network, 8 x 96 px",
    "r18-256": "R18-FPN 2fc, 8 x 256 px",
    "r50-256": "R50-FPN 2fc, 4 x 256 px",
    "r50-800": "R50-FPN 2fc, 1 x 800 px",
    "lite0-192": "EfficientNet-Lite0, 8 x 192 x 256 px",
}
PRODUCTS_GOAL = 0.9  # share of a step from which on only the products are left to gain

Kinds = dict[str, dict[str, dict[str, Any]]]  # {kind: {file's name: content}}


def read_kept(folder: Path = KEPT) -> Kinds:
    """All kept figures: {kind: {name: {"made": …, "figures": …}}}."""
    return {
        kind.name: {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(kind.glob("*.json"))}
        for kind in sorted(folder.iterdir())
        if kind.is_dir()
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


def spread(seconds: list[float]) -> str:
    """Median and range, in ms below a second, else in s."""
    unit, scale, digits = ("ms", 1e3, 0) if statistics.median(seconds) < 1 else ("s", 1, 1)
    middle, low, high = (f"{scale * f(seconds):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} {unit} ({low}-{high})"


def judged(found: float, goal: float) -> str:
    """A goal and its outcome, both to two digits, as the table prints them."""
    return f"{goal:.2f}: {'met' if round(found, 2) <= goal else 'missed'}"


def step_rows(kind: dict[str, dict[str, Any]]) -> list[str]:
    """Rows of one kind's table of steps, with the file that each comes from."""
    rows = []
    for case, label in NAMES.items():
        for name, content in kind.items():
            found = content["figures"].get("cases", {}).get(case) if "cases" in content["figures"] else None
            if found is None:
                continue
            rows += case_rows(case, label, found, name)
    return rows


def case_rows(case: str, label: str, found: dict[str, Any], name: str) -> list[str]:
    """Rows of one case: train step, the network alone, inference, memory, share of products."""
    train, products = found["train"], found["operators"]["products"]
    whole, floor = ratio(train["ours"], train["theirs"]), ratio(train["net alone"], train["theirs"])
    outcome = judged(whole, GOALS[case])
    if "missed" in outcome and products >= PRODUCTS_GOAL:
        outcome += f", but {products:.0%} of the step are products"
    pairs = [
        (f"{label}: train step", train["ours"], train["theirs"], outcome),
        ("of it the network alone", train["net alone"], train["theirs"], f"floor {floor:.2f}"),
    ]
    if "ours bf16" in train:
        pairs.append(("train step in bf16 (torchvision in fp32)", train["ours bf16"], train["theirs"], "-"))
    if "backbone" in train:
        outcome = judged(statistics.median(train["backbone"]), BACKBONE_GOAL).replace(":", " s:")
        pairs.append(
            ("the backbone alone, forward and backward (timm's own)", train["backbone"], train["timm"], outcome)
        )
    if "inference" in found:
        ours, theirs = found["inference"]["ours"], found["inference"]["theirs"]
        judgement = judged(ratio(ours, theirs), INFERENCE_GOALS[case])
        share = found["inference operators"]["products"] if "inference operators" in found else 0.0
        if "missed" in judgement and share >= PRODUCTS_GOAL:
            judgement += f", but {share:.0%} of it are products"
        pairs.append(("inference", ours, theirs, judgement))
    rows = [
        f"| {text} | {spread(ours)} | {spread(theirs)} | **{ratio(ours, theirs):.2f}** | {min(ours) / min(theirs):.2f} "
        f"| {len(ours)} | {goal} | {name} |"
        for text, ours, theirs, goal in pairs
    ]
    if "memory" in found:
        ours, theirs = found["memory"]["ours"], found["memory"]["theirs"]
        rows.append(
            f"| peak memory of a train step | {ours:,.0f} MiB | {theirs:,.0f} MiB | **{ours / theirs:.2f}** | | 1 "
            f"| {judged(ours / theirs, 1.0)} | {name} |"
        )
    rows.append(f"| share of our train step inside convolutions and products | {products:.0%} | | | | 1 | - | {name} |")
    return rows


def other_rows(kind: dict[str, dict[str, Any]]) -> list[str]:
    """Rows of the figures besides steps: loading, evaluation, annotations, report and plan."""
    rows = []
    if "loader" in kind:
        found = kind["loader"]["figures"]
        waits = [a / b for a, b in zip(found["from files"], found["same batches in memory"], strict=True)]
        middle = statistics.median(waits)
        text = f"{middle:.3f} ({min(waits):.3f}-{max(waits):.3f})"
        rows.append(f"| step from files / on the same batches in memory, R18 8 x 256 px | {text} | 1.03 | loader |")
        speeds = found["images per second and core"]
        text = ", ".join(f"{value:.0f} at {size} px" for size, value in speeds.items())
        rows.append(f"| images decoded and resized per second and core | {text} | - | loader |")
    for size, found in kind["convolution"]["figures"].items() if "convolution" in kind else ():
        what = "dense layer and its gradients" if "MKL" in found else "weight gradient of a 3x3 convolution"
        own, other = ("oneDNN", "MKL") if "MKL" in found else ("products", "oneDNN")
        text = f"{own} {found[own]:.1f} ms, {other} {found[other]:.1f} ms, ratio {found[own] / found[other]:.2f}"
        rows.append(f"| {what}, {size} | {text} | - | convolution |")
    for name in ("evaluation", "evaluation-5000"):
        if name in kind:
            found = kind[name]["figures"]
            ours, theirs = (
                found["ours box+mask, first call s"],
                found["pycocotools box s"] + found["pycocotools mask s"],
            )
            size = f"{found['images']:,} images, {found['detections']:,} detections"
            text = f"{ours:.2f} s, pycocotools {theirs:.1f} s, ratio {found['ratio box+mask']:.3f}"
            rows.append(f"| evaluation of boxes and masks, {size} | {text} | 0.2 | {name} |")
    if "coco_load" in kind:
        found = kind["coco_load"]["figures"]
        size = f"{found['images']:,} images, {found['instances']:,} objects"
        text = f"{found['seconds']} s ({found['processor_seconds']} s of the processor), {found['peak_gib']} GiB"
        rows.append(f"| reading COCO annotations, {size} | {text} | 15 s, 4 GiB | coco_load |")
    if "reporting" in kind:
        report, plan = kind["reporting"]["figures"]["report"], kind["reporting"]["figures"]["plan"]
        size = f"{report['cells']} cells, {report['rows']:,} rows"
        text = f"{report['seconds']:.2f} s, {report['MiB']:.1f} MiB"
        rows.append(f"| report of {size} | {text} | 5 s | reporting |")
        size = f"{plan['cells']:,} cells in {plan['segments']:,} segments"
        rows.append(f"| plan of {size} | {plan['seconds']:.2f} s | 2 s | reporting |")
    return rows


def goal_rows(kinds: Kinds) -> list[str]:
    """A row a goal, a column a kind of processor: the ratio of the medians and its outcome."""
    rows = []
    for case, label in NAMES.items():
        for text, kept, goal in (
            ("train step", "train", GOALS.get(case)),
            ("inference", "inference", INFERENCE_GOALS.get(case)),
        ):
            cells = []
            for kind in kinds.values():
                cases = [c["figures"]["cases"] for c in kind.values() if "cases" in c["figures"]]
                found = next((each[case] for each in cases if kept in each.get(case, {})), None)
                if found is None:
                    cells.append("not measured")
                    continue
                value = ratio(found[kept]["ours"], found[kept]["theirs"])
                cells.append(f"{value:.2f} {judged(value, goal).partition(': ')[2]}")
            if any(cell != "not measured" for cell in cells):
                rows.append(f"| {label}: {text} | {goal:.2f} | {' | '.join(cells)} |")
    return rows


def render(kinds: Kinds) -> str:
    """Text of all tables: the goals with a column a kind, then a section a kind, with the commands at its end."""
    parts = [
        f"| ratio of our time to torchvision's | goal | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}",
        "\n".join(goal_rows(kinds)) + "\n",
    ]
    for name, kind in kinds.items():
        made = next(iter(kind.values()))["made"]
        features = ", ".join(made["features"]) or "none of AVX2, AVX-512, AMX"
        versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
        limits = "".join(f", `{field}={value}`" for field, value in sorted(made.get("environment", {}).items()))
        parts += [
            f"### {made['processor']}: {features} (`{name}`)\n",
            f"{made['cores']} cores, {made['memory_gib']} GB, no GPU{limits}; {versions}.\n",
            "| | ours | torchvision | ratio | fastest | steps | goal | from |\n|---|---|---|---|---|---|---|---|",
            "\n".join(step_rows(kind)) + "\n",
            "| | measured | goal | from |\n|---|---|---|---|",
            "\n".join(other_rows(kind)) + "\n",
            "| from | command | commit | date |\n|---|---|---|---|",
            "\n".join(
                f"| {file} | `{content['made']['command']}` | {content['made']['commit']} | {content['made']['date']} |"
                for file, content in kind.items()
            )
            + "\n",
        ]
    return "\n".join(parts)


def rewritten(page: str, kinds: Kinds) -> str:
    """The page with its tables made anew."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + "\n" + render(kinds) + "\n" + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="KIND", help="copy runs/bench here first, as this kind of processor")
    kind = parser.parse_args().add
    if kind:
        shutil.copytree("runs/bench", KEPT / kind, dirs_exist_ok=True)
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), read_kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
