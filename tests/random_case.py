"""Random data sets with detections, as a COCO document and a list of results."""

import numpy as np
from pycocotools import mask as coco_mask


def random_case(
    seed,
    *,
    num_images=8,
    category_ids=(3, 5, 90),
    max_objects=6,
    max_extra=6,
    crowd=0.15,
    score_step=0.1,
    size=(150, 200),
    repeats=2,
):
    """(document, results): objects, and detections that are shaken copies of them or lie anywhere.

    score_step: scores are multiples of it, so that there are ties; 0 for none. Every third image has no object, every
    fifth no detection. Half of the boxes have whole numbers, so that overlaps meet thresholds exactly.
    """
    generator = np.random.default_rng(seed)
    image_ids = np.sort(generator.choice(1000, num_images, replace=False)) * 7 + 11
    document = {
        "images": [{"id": int(i), "file_name": f"{i}.jpg", "height": size[0], "width": size[1]} for i in image_ids],
        "categories": [{"id": category, "name": f"class {category}"} for category in category_ids],
        "annotations": [],
    }
    generator.shuffle(document["images"])
    results = []
    for place, image in enumerate(image_ids.tolist()):
        num_objects = 0 if place % 3 == 2 else generator.integers(1, max_objects + 1)
        objects = [_annotation(generator, image, category_ids, crowd, size) for _ in range(num_objects)]
        document["annotations"] += objects
        if place % 5 == 4:
            continue
        for annotation in objects:
            box = np.array(annotation["bbox"])
            categories = (annotation["category_id"],) * 6 + category_ids
            for _ in range(generator.integers(0, repeats + 1)):
                shaken = box + generator.normal(0, 0.1, 4) * np.tile(box[2:], 2) * generator.integers(0, 2, 4)
                shaken[2:] = np.abs(shaken[2:]) + 1
                results.append(_result(generator, image, categories, shaken, score_step, size))
        for _ in range(generator.integers(0, max_extra + 1)):
            results.append(_result(generator, image, category_ids, _object(generator, size), score_step, size))
    for index, annotation in enumerate(document["annotations"]):
        annotation["id"] = index * 3 + 1
    order = generator.permutation(len(results))
    return document, [results[index] for index in order]


def _object(generator, size):
    height, width = size
    wh = np.exp(generator.uniform(np.log(4), np.log([width * 0.9, height * 0.9])))
    box = np.concatenate([generator.uniform(-2, np.array([width, height]) - wh + 2), wh])
    box = np.round(box) if generator.random() < 0.5 else np.round(box, 2)
    return np.maximum(box, [-2, -2, 1, 1]).tolist()


def _annotation(generator, image, category_ids, crowd, size):
    box = _object(generator, size)
    segmentation, area = _segmentation(generator, box, size)
    is_crowd = bool(generator.random() < crowd)
    if is_crowd:
        mask = _ellipse(box, size)
        area = float(mask.sum())
        segmentation = _rle(mask)
    return {
        "image_id": image, "category_id": int(generator.choice(category_ids)), "bbox": box, "area": area,
        "iscrowd": int(is_crowd), "segmentation": segmentation,
    }  # fmt: skip


def _segmentation(generator, box, size):
    x, y, w, h = box
    if generator.random() < 0.2:
        mask = _ellipse(box, size)
        return _rle(mask), float(max(mask.sum(), 1))
    corners = np.array([[x, y + h / 3], [x + w / 2, y], [x + w, y + h / 2], [x + w / 3, y + h]])
    polygons = [np.round(corners, 1).ravel().tolist()]
    if generator.random() < 0.3:
        polygons.append([x, y, x + w / 4, y, x + w / 4, y + h / 4, x, y + h / 4])
    return polygons, float(w * h * generator.uniform(0.4, 0.9))


def _ellipse(box, size):
    x, y, w, h = box
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    return ((xs - x - w / 2) / (w / 2)) ** 2 + ((ys - y - h / 2) / (h / 2)) ** 2 <= 1


def _rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _result(generator, image, category_ids, box, score_step, size):
    score = generator.random()
    score = float(np.ceil(score / score_step) * score_step) if score_step else float(score)
    mask = _ellipse(box, size)
    x, _, w, _ = box
    if generator.random() < 0.5:
        mask |= np.roll(mask, 1, axis=1) & (np.arange(size[1]) > x + w / 2)
    box = [float(value) for value in box]
    return {
        "image_id": image, "category_id": int(generator.choice(category_ids)), "bbox": box, "score": score,
        "segmentation": _rle(mask),
    }  # fmt: skip


def add_keypoints(document, results, num_keypoints, seed):
    """Give every annotation and result keypoints: some unlabelled, some annotations without any."""
    generator = np.random.default_rng(seed)
    for category in document["categories"]:
        category["keypoints"] = [f"point {index}" for index in range(num_keypoints)]
    places = {}
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        points = np.round(generator.random((num_keypoints, 2)) * [w, h] + [x, y])
        visible = generator.integers(0, 3, num_keypoints) * (generator.random() < 0.8)
        points[visible == 0] = 0
        annotation["keypoints"] = np.column_stack([points, visible]).ravel().tolist()
        annotation["num_keypoints"] = int((visible > 0).sum())
        places.setdefault(annotation["image_id"], []).append((points, w, h))
    for result in results:
        points, w, h = places.get(result["image_id"], [(np.full((num_keypoints, 2), 40.0), 30, 30)])[
            generator.integers(len(places.get(result["image_id"], [0])))
        ]
        shaken = points + generator.normal(0, generator.choice([0.01, 0.05, 0.2]), points.shape) * [w, h]
        shaken = shaken.astype(np.float32).astype(float)
        result["keypoints"] = np.column_stack([shaken, np.ones(num_keypoints)]).ravel().tolist()
