"""A made-up study as the runner writes one: real plan, plausible rows, pictures, and names that try to be markup."""

import json
from collections.abc import Callable
from math import exp
from pathlib import Path

import numpy as np
import yaml
from msgspec.structs import asdict
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from headstart.data.dataset import Dataset
from headstart.data.read import coco
from headstart.metrics.coco import evaluate
from headstart.metrics.errors import error_types
from headstart.metrics.predictions import Predictions
from headstart.study.folder import write_study
from headstart.study.plan import Segment, expand, schedule_names
from headstart.study.spec import parse_study
from schedules import make_schedules

CLASSES = ("circle", "<b>bold</b>", "</script><script>alert(1)</script>", "\"quoted\" & 'more'", "étoile ★", "=1+1")
FILE_NAME = "<img src=x onerror=alert({})>.png"
IMAGES = {1.0: 800, 0.5: 400, 0.1: 80, 0.05: 40}
BATCH = 8
SHEET = [
    {"field": "start.kind", "values": {"pretrained": "backbone", "scratch": "random"}, "declared": True},
    {"field": "start.weights", "values": {"pretrained": "pretrain:shapes", "scratch": None}, "declared": True},
]
# Where box AP ends and how many steps it takes to get there, by arm and fraction.
ENDS = {
    ("pretrained", 1.0): (0.47, 80),
    ("scratch", 1.0): (0.49, 170),
    ("pretrained", 0.1): (0.24, 55),
    ("scratch", 0.1): (0.13, 115),
}


def build_study(
    root: Path,
    *,
    seeds: int = 1,
    schedules: tuple[str, ...] = ("1x", "2x", "3x", "6x"),
    fractions: tuple[float, ...] = (1.0, 0.1),
    num_begun: int | None = None,
    log_every: int = 10,
    eval_every: int = 100,
    settings: dict | None = None,
    differences: list[dict] | None = None,
    pictures: bool = True,
    judge_training: bool = False,
    ap: Callable[..., float] | None = None,
    ema: Callable[..., float] | None = None,
    stored: dict | None = None,
) -> Path:
    """A study's directory below `root`, of which the first num_begun segments are finished (None: all).

    ap replaces `box_ap`; ema is that of averaged weights, evaluated beside the live ones; stored are further fields of
    segment.json.
    """
    study = parse_study(_settings(seeds, schedules, fractions) | (settings or {}), source="fixture")
    made = make_schedules(schedule_names(study), base=300, base_rate=0.04, warmup=50, warmup_from=0.3)
    plan = expand(study, made, pretrain_steps={"shapes": 900})
    path = root / "runs" / study.name
    begun = plan.segments[:num_begun]
    dataset = _write_dataset(root / "data") if pictures else None
    write_study(
        path,
        study.model_dump(mode="json"),
        plan,
        num_images={entry.fraction: IMAGES[entry.fraction] for entry in study.fractions},
        batch=BATCH,
        differences=SHEET if differences is None else differences,
        finished={segment.name: path / directory_of(segment) for segment in begun},
    )
    for segment in begun:
        rows = _rows(segment, log_every, eval_every, judge_training, ap or box_ap, ema)
        _write_run(path, root, segment, dataset, rows, stored or {})
    return path


def box_ap(arm: str, fraction: float, seed: int, step: int, in_tail: bool) -> float:
    """The made-up truth: rises, jumps where the rate falls, and differs a little from seed to seed."""
    end, pace = ENDS.get((arm, fraction), (0.3 if arm == "pretrained" else 0.25, 300))
    noise = 0.004 * np.sin(12.9898 * seed + 78.233 * step + len(arm))
    return max(0.0, end * (1 - exp(-step / pace)) * (1.0 if in_tail else 0.82) + noise)


def _settings(seeds: int, schedules: tuple[str, ...], fractions: tuple[float, ...]) -> dict:
    return {
        "name": "demo",
        "recipe": "demo",
        "arms": {"pretrained": {"start.kind": "backbone", "start.weights": "pretrain:shapes"}, "scratch": {}},
        "schedules": list(schedules),
        "fractions": [
            {"fraction": f, "schedules": list(schedules) if f == 1 else list(schedules[:3])} for f in fractions
        ],
        "seeds": seeds,
        "pretrain": {"shapes": {"recipe": "demo_pretrain", "set": {"seed": 0, "data.fraction": 1.0}}},
        "rule": {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01},
    }


def directory_of(segment: Segment) -> str:
    return f"segments/{segment.name}-0123456789ab"


def _write_run(path: Path, root: Path, segment: Segment, dataset, rows: list[dict], stored: dict) -> None:
    directory = path / directory_of(segment)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"val": "data/val.json", "val_images": "data/images", "val_split": None}
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"name": "demo", "data": data, "train": {"batch": BATCH}}))
    (directory / "environment.json").write_text(
        json.dumps({"headstart": "0.1.0", "torch": "2.x", "cpus": 2, "gpu": None})
    )
    facts = {"num_images": IMAGES[segment.fraction], "classes": {}, "fingerprint": ""}
    (directory / "segment.json").write_text(json.dumps({**asdict(segment), **facts, **stored}))
    if segment.parent is None:
        (directory / "audit.json").write_text(json.dumps(_audit(segment)))
    if dataset is not None and segment.kind == "tail":
        predictions = _predictions(
            dataset, found=0.9 if segment.arm == "pretrained" else 0.7, seed=segment.seed + len(segment.arm)
        )
        predictions.to_json(directory / f"predictions-{segment.stop}.json")
        for kind, records in evaluate(dataset, predictions).records.items():
            records.save(directory / f"records-{kind}-{segment.stop}.npz")
        errors = {kind: error_types(dataset, predictions, kind).to_json() for kind in ("box", "mask")}
        (directory / f"errors-{segment.stop}.json").write_text(json.dumps(errors))


def _rows(s: Segment, log_every: int, eval_every: int, judge_training: bool, ap, ema) -> list[dict]:
    counted = lambda step: {"images": BATCH * step, "instances": 25 * step, "pixels": BATCH * 96 * 96 * step}  # noqa: E731
    clock = lambda step: {"train": 0.21 * step, "eval": 0.03 * step, "other": 0.01 * step}  # noqa: E731
    rows: list[dict] = [{"kind": "start", "step": s.start, "source": "random", "total": s.stop, "stop": s.stop}]
    for step in range(s.start + 1, s.stop + 1):
        common = {"step": step, **counted(step), "seconds": clock(step)}
        if step % log_every == 0 or step == s.stop:
            loss = 0.4 + 2 * exp(-step / 300) - (0.1 if s.kind == "tail" else 0)
            rows.append({"kind": "train", **common, "rate": 0.04, "loss": loss, "losses": {"mask": loss}})
        if step % eval_every == 0 or step == s.stop:
            rows.append({"kind": "eval", "split": "val", **common, **_scores(s, step, ap)})
            if judge_training and s.kind != "pretrain":
                rows.append({"kind": "eval", "split": "train", **common, **_scores(s, step, ap, seen=True)})
            if ema and s.kind != "pretrain":
                rows.append({"kind": "eval", "split": "val", "weights": "ema", **common, **_scores(s, step, ema)})
    rows.append(
        {
            "kind": "end",
            "step": s.stop,
            "checkpoint": f"checkpoints/{s.stop:06d}.pt",
            "hash": f"{hash_of(s)}",
            "memory": 800_000_000 + s.stop,
            "seconds": clock(s.stop),
        }
    )
    return rows


def hash_of(segment: Segment) -> str:
    return segment.name.encode().hex().ljust(64, "0")[:64]


def _scores(s: Segment, step: int, ap_at, *, seen: bool = False) -> dict:
    if s.kind == "pretrain":
        return {"metrics": {"class": {"top1": 0.5}}, "per_class": {"class": {"a": {"top1": 0.5}}}}
    ap = ap_at(s.arm, s.fraction, s.seed, step, s.kind == "tail") + (0.0002 * step if seen else 0.0)
    metrics, per_class = {}, {}
    for kind, factor in (("box", 1.0), ("mask", 0.9)):
        own = ap * factor
        metrics[kind] = {
            "AP": own,
            "AP50": min(1, own * 1.6),
            "AP75": own * 1.05,
            "APs": own * 0.6,
            "APm": own * 1.1,
            "APl": None,
        }
        metrics[kind] |= {"AR1": own * 0.9, "AR10": own * 1.2, "AR100": own * 1.3}
        tilt = 0.05 if s.arm == "scratch" else -0.05
        values = [{"AP": own * (0.8 + 0.1 * c + tilt * (c - 2)), "AP50": own * 1.5} for c in range(len(CLASSES))]
        per_class[kind] = dict(zip(CLASSES, values)) | {CLASSES[-1]: {"AP": None, "AP50": None}}
    return {"metrics": metrics, "per_class": per_class}


def _audit(segment: Segment) -> dict:
    weights = "runs/demo/segments/pretrain-shapes/checkpoints/000900.pt" if segment.weights_from else None
    source = f"{weights} (sha256 abcdef012345)" if weights else "random (MSRA, fan-out)"
    row = {"num_tensors": 12, "num_params": 34_560, "training": "trains", "norm": "group (8)"}
    rows = [
        {"group": "stem", "source": source} | row,
        {"group": "rpn", "source": "random (N(0, 0.01))"} | row | {"norm": "none"},
    ]
    start = "backbone" if weights else "random"
    return {
        "start": start,
        "freeze": "none",
        "file": weights,
        "hash": None,
        "rows": rows,
        "errors": [],
        "notes": [],
        "left_out": [],
    }


def _write_dataset(root: Path, num_images: int = 12) -> Dataset:
    """Small pictures of ellipses and boxes, with polygons, as COCO files."""
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    document: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * c + 2, "name": name} for c, name in enumerate(CLASSES)],
    }
    for i in range(num_images):
        name = FILE_NAME.format(i)
        picture = Image.fromarray(generator.integers(90, 130, (72, 96, 3), dtype=np.uint8))
        for _ in range(int(generator.integers(1, 5))):
            label = int(generator.integers(0, len(CLASSES) - 1))
            w, h = generator.integers(16, 40, 2).tolist()
            x, y = int(generator.integers(0, 96 - w)), int(generator.integers(0, 72 - h))
            angles = np.linspace(0, 2 * np.pi, 4 if label % 2 else 24, endpoint=False) + 0.3
            polygon = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], 1)
            ImageDraw.Draw(picture).polygon(
                [tuple(p) for p in polygon], fill=tuple(generator.integers(0, 255, 3).tolist())
            )
            low, high = polygon.min(0), polygon.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
            entry = {"id": len(document["annotations"]) + 1, "image_id": i + 10, "category_id": 3 * label + 2}
            entry |= {
                "bbox": box,
                "area": box[2] * box[3] * 0.7,
                "iscrowd": 0,
                "segmentation": [polygon.ravel().tolist()],
            }
            document["annotations"].append(entry)
        picture.save(root / "images" / name)
        document["images"].append({"id": i + 10, "file_name": name, "width": 96, "height": 72})
    (root / "val.json").write_text(json.dumps(document))
    return coco.read(root / "val.json", root / "images")


def _predictions(dataset: Dataset, *, found: float, seed: int) -> Predictions:
    """Annotated objects, some missed, some shifted, some under another class."""
    generator = np.random.default_rng(seed)
    kept = np.flatnonzero(generator.random(dataset.num_annotations) < found)
    shift = generator.normal(0, 1.5 / found, (len(kept), 2))
    boxes = dataset.boxes[kept] + np.concatenate([shift, shift], 1)
    boxes = np.clip(boxes, 0, [95, 71, 96, 72])
    labels = np.where(generator.random(len(kept)) < found, dataset.labels[kept], 0)
    owner = np.repeat(np.arange(dataset.num_images), np.diff(dataset.first))[kept]
    flat = [[(polygon + move).ravel().tolist() for polygon in dataset.polygons(n)] for n, move in zip(kept, shift)]
    masks = tuple(coco_mask.merge(coco_mask.frPyObjects(polygons, 72, 96)) for polygons in flat)
    scores = generator.uniform(0.3, 1.0, len(kept))
    return Predictions(dataset.image_ids[owner], dataset.category_ids[labels], boxes, scores, masks)
