"""Types of mistakes against a plain walk that really mends the detections and evaluates them again."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from headstart.data.read import coco
from headstart.metrics.coco import evaluate
from headstart.metrics.errors import TYPES, error_types
from headstart.metrics.predictions import Predictions, empty
from random_case import random_case


def read(tmp_path, document, results):
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return coco.read(tmp_path / "truth.json"), Predictions.from_json(tmp_path / "results.json")


def overlaps(document, results, kind):
    """{(result, annotation): overlap} of all pairs on one image."""
    size = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    shapes = []
    for item in [*results, *document["annotations"]]:
        shape = item["bbox"] if kind == "box" else item["segmentation"]
        if isinstance(shape, list) and kind == "mask":
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size[item["image_id"]]))
        shapes.append(shape)
    pairs = {}
    for r, result in enumerate(results):
        for a, annotation in enumerate(document["annotations"]):
            if result["image_id"] == annotation["image_id"]:
                truth = shapes[len(results) + a]
                pairs[r, a] = coco_mask.iou([shapes[r]], [truth], [annotation["iscrowd"]])[0, 0]
    return pairs


def plain_reasons(document, results, kind):
    """For each result its reason ("" if right, None if ignored), the annotation taken or meant, and the missed ones."""
    annotations, near = document["annotations"], overlaps(document, results, kind)
    ignored = [annotation["iscrowd"] or annotation.get("difficult") for annotation in annotations]
    reasons, targets, taken = [None] * len(results), [None] * len(results), set()
    for r in sorted(range(len(results)), key=lambda r: -results[r]["score"]):
        same = {a: near[r, a] for a, annotation in enumerate(annotations)
                if (r, a) in near and annotation["category_id"] == results[r]["category_id"]}  # fmt: skip
        free = [a for a in same if same[a] >= 0.5 and (a not in taken or annotations[a]["iscrowd"])]
        if free:
            target = max(free, key=lambda a: (not ignored[a], same[a], a))
            taken.add(target)
            if not ignored[target]:
                reasons[r], targets[r] = "", target
            continue
        counting = {a: value for a, value in same.items() if not ignored[a]}
        others = {a: near[r, a] for a in range(len(annotations)) if (r, a) in near and a not in same and not ignored[a]}
        own, other = max(counting.values(), default=0), max(others.values(), default=0)
        if own >= 0.1:
            reasons[r] = "duplicate" if own >= 0.5 else "localisation"
            targets[r] = None if own >= 0.5 else max(counting, key=lambda a: (counting[a], a))
        elif other >= 0.1:
            reasons[r] = "classification" if other >= 0.5 else "both"
            targets[r] = max(others, key=lambda a: (others[a], a)) if other >= 0.5 else None
        else:
            reasons[r] = "background"
    found = {target for reason, target in zip(reasons, targets) if reason is not None}
    missed = [a for a in range(len(annotations)) if not ignored[a] and a not in found]
    return reasons, targets, missed


def mend(document, results, reasons, targets, name):
    """Results without the mistakes of one reason, really moved and relabelled."""
    best = {}
    for r, target in enumerate(targets):
        if target is not None and reasons[r] in ("", name):
            rival = best.get(target)
            if rival is None or results[r]["score"] > results[rival]["score"]:
                best[target] = r
    mended = []
    for r, result in enumerate(results):
        if reasons[r] == name and best.get(targets[r]) == r:
            truth = document["annotations"][targets[r]]
            changed = ("category_id",) if name == "classification" else ("bbox", "segmentation")
            mended.append({**result, **{key: truth[key] for key in changed}})
        elif reasons[r] is None or (reasons[r] == "" and best[targets[r]] == r) or reasons[r] not in ("", name):
            mended.append(result)
    return mended


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_evaluation_of_really_mended_detections(tmp_path, seed, kind):
    document, results = random_case(
        seed, num_images=12, score_step=0, max_objects=9, repeats=4, crowd=(0, 0.2)[seed % 2], size=(60, 80)
    )
    size = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for index, annotation in enumerate(document["annotations"]):
        if isinstance(annotation["segmentation"], list):
            mask = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size[annotation["image_id"]]))
            annotation["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        if seed == 3 and index % 5 == 0:
            annotation["difficult"] = 1
    ours = error_types(*read(tmp_path, document, results), kind)
    assert ours.ap50 == pytest.approx(ap50(tmp_path, document, results, kind), abs=1e-12)
    reasons, targets, missed = plain_reasons(document, results, kind)
    assert ours.counts == {name: reasons.count(name) for name in TYPES[:-1]} | {"missed": len(missed)}
    assert sum(count > 0 for count in ours.counts.values()) >= 5
    for name in TYPES[:-1]:
        mended = mend(document, results, reasons, targets, name)
        expected = ap50(tmp_path, document, mended, kind)
        assert ours.ap50 + ours.gains[name] == pytest.approx(expected, abs=1e-12), name
    without = copy.deepcopy(document)
    without["annotations"] = [value for a, value in enumerate(document["annotations"]) if a not in missed]
    expected = ap50(tmp_path, without, results, kind)
    assert ours.ap50 + ours.gains["missed"] == pytest.approx(expected, abs=1e-12)
    assert max(ours.gains.values()) > 0.02


def ap50(tmp_path, document, results, kind):
    return evaluate(*read(tmp_path, document, results), kinds=(kind,)).metrics[kind]["AP50"]


def test_one_mistake_of_each_type(tmp_path):
    document, _ = random_case(0, num_images=1, category_ids=(1, 2))
    image = document["images"][0]["id"]
    truth = {"image_id": image, "iscrowd": 0, "area": 400}
    boxes = [(1, [0, 0, 20, 20]), (1, [50, 0, 20, 20]), (2, [100, 0, 20, 20]), (1, [0, 100, 20, 20])]
    document["annotations"] = [
        {**truth, "id": index + 1, "category_id": c, "bbox": box} for index, (c, box) in enumerate(boxes)
    ]
    found = [
        (1, [0, 0, 20, 20], 0.9, "right"),
        (1, [1, 0, 20, 20], 0.8, "duplicate"),
        (1, [60, 0, 20, 20], 0.7, "localisation"),
        (1, [101, 0, 20, 20], 0.6, "classification"),
        (1, [112, 0, 20, 20], 0.5, "both"),
        (2, [150, 50, 20, 20], 0.4, "background"),
    ]
    results = [{"image_id": image, "category_id": c, "bbox": box, "score": score} for c, box, score, _ in found]
    ours = error_types(*read(tmp_path, document, results))
    assert ours.counts == dict.fromkeys(TYPES, 1)
    assert ours.gains["background"] == 0  # class 2 has no detection that is right
    assert ours.gains["classification"] > 0.4  # it is the only object of class 2
    assert ours.gains["localisation"] > 0.1 and ours.gains["missed"] > 0.05


def test_nothing_found_and_nothing_there(tmp_path):
    document, results = random_case(1, crowd=0)
    dataset, _ = read(tmp_path, document, results)
    ours = error_types(dataset, empty())
    assert ours.counts == dict.fromkeys(TYPES, 0) | {"missed": len(document["annotations"])}
    assert ours.ap50 == 0 and np.isnan(ours.gains["missed"])  # nothing is left to ask for
    document["annotations"] = []
    ours = error_types(*read(tmp_path, document, results))
    assert ours.counts == dict.fromkeys(TYPES, 0) | {"background": len(results)} and np.isnan(ours.ap50)
