"""COCO JSON: what is read, what is repaired, what is refused and how the refusal reads."""

import copy
import gc
import itertools
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from headstart.data.dataset import Dataset, fingerprint, nested_fraction
from headstart.data.read import coco

RNG = np.random.default_rng(2)
MASK = np.asfortranarray(RNG.random((30, 40)) < 0.3, dtype=np.uint8)
COMPRESSED = {"size": [30, 40], "counts": coco_mask.encode(MASK)["counts"].decode()}
RUNS = [len(list(run)) for _, run in itertools.groupby(MASK.ravel(order="F").tolist())]
RUNS = [0, *RUNS] if MASK[0, 0] else RUNS
TRIANGLE = [1.5, 2.0, 11.5, 2.0, 1.5, 22.0]


def document():
    """Category ids with gaps, unsorted, from 0; images unsorted; every kind of segmentation; two negatives."""
    return {
        "images": [
            {"id": i, "file_name": f"sub/{i}.jpg", "height": 30, "width": 40, "license": 3} for i in (50, 7, 0, 900)
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 0, "name": "ant"}, {"id": 3, "name": "bee"}],
        "annotations": [
            {"id": 12, "image_id": 0, "category_id": 90, "bbox": [1.5, 2, 10, 20], "area": 100.5, "iscrowd": 0,
             "segmentation": [TRIANGLE]},
            {"id": 11, "image_id": 50, "category_id": 0, "bbox": [0, 0, 40, 30], "area": 7, "iscrowd": 1,
             "segmentation": COMPRESSED},
            {"id": 3, "image_id": 0, "category_id": 3, "bbox": [0.1, 0.2, 0.7, 0.1], "area": 0.07, "iscrowd": 1,
             "segmentation": {"size": [30, 40], "counts": RUNS}},
            {"id": 4, "image_id": 50, "category_id": 3, "bbox": [-2.5, 3, 60, 60], "area": 9, "iscrowd": 0,
             "segmentation": [TRIANGLE, [2, 2, 5, 2, 5, 5, 2, 5]], "difficult": 1},
            {"id": 5, "image_id": 50, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": []},
        ],
    }  # fmt: skip


def save(folder, content):
    path = folder / "instances_made.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def same(a, b):
    """Every array, id and name equal, places and notes apart."""
    for name in Dataset.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if name in ("path", "image_dir", "notes"):
            continue
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            assert x == y, name
    assert fingerprint(a) == fingerprint(b)


def test_flat_arrays(tmp_path):
    d = coco.read(save(tmp_path, document()), tmp_path)
    assert (d.num_images, d.num_annotations, d.num_classes, d.notes) == (4, 5, 3, ())
    assert d.image_ids.tolist() == [50, 7, 0, 900] and d.file_names[1] == "sub/7.jpg"
    assert d.heights.tolist() == [30] * 4 and d.widths.tolist() == [40] * 4
    assert d.category_ids.tolist() == [0, 3, 90] and d.class_names == ("ant", "bee", "zebra")
    assert d.first.tolist() == [0, 3, 3, 5, 5]  # images 7 and 900 have none and stay
    assert d.annotation_ids.tolist() == [11, 4, 5, 12, 3]  # stable within an image
    assert d.labels.tolist() == [0, 1, 1, 2, 1]
    assert d.crowd.tolist() == [True, False, False, False, True]
    assert d.difficult.tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(d.boxes[1], [-2.5, 3, 57.5, 63])  # as annotated, though it leaves the image
    assert d.areas.tolist() == [7, 9, 4, 100.5, 0.07]
    assert d.segment_kind.tolist() == [2, 1, 0, 1, 2]
    assert [len(d.polygons(n)) for n in range(5)] == [0, 2, 0, 1, 0]
    np.testing.assert_array_equal(d.polygons(3)[0].ravel(), TRIANGLE)
    for n in (0, 4):  # compressed and uncompressed are the same mask
        np.testing.assert_array_equal(coco_mask.decode(d.rles[n]), MASK)
    assert d.keypoints is None and d.keypoint_names == () and d.left_right == ()
    dtypes = {name: getattr(d, name).dtype for name in ("image_ids", "heights", "labels", "boxes", "first", "crowd")}
    assert dtypes == {"image_ids": np.int64, "heights": np.int32, "labels": np.int32, "boxes": np.float64,
                      "first": np.int64, "crowd": bool}  # fmt: skip


def test_a_file_and_its_parsed_document_are_the_same(tmp_path):
    path = save(tmp_path, document())
    same(coco.read(path), coco.from_document(document(), path))


def test_write_then_read_is_the_identity(tmp_path):
    made = coco.read(save(tmp_path, document()))
    coco.write(made, tmp_path / "deeper" / "again.json")
    same(coco.read(tmp_path / "deeper" / "again.json"), made)
    assert sorted(p.name for p in (tmp_path / "deeper").iterdir()) == ["again.json"]
    written = json.loads((tmp_path / "deeper" / "again.json").read_text())
    assert written["annotations"][4]["bbox"] == [0.1, 0.2, 0.7, 0.1]  # 0.1 + 0.7 - 0.1 is not 0.7 in binary


def test_boxes_of_any_numbers_survive_writing(tmp_path):
    content = document()
    boxes = np.concatenate((RNG.uniform(0, 600, (500, 2)), RNG.uniform(0.01, 600, (500, 2))), 1)
    boxes[:250] = boxes[:250].round(2)
    content["annotations"] = [
        {"id": n, "image_id": 0, "category_id": 0, "bbox": box, "area": 1, "iscrowd": 0}
        for n, box in enumerate(boxes.tolist())
    ]
    made = coco.read(save(tmp_path, content))
    coco.write(made, tmp_path / "again.json")
    same(coco.read(tmp_path / "again.json"), made)


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    made = coco.read(save(tmp_path, document()))
    coco.write(made, tmp_path / "again.json")
    theirs = COCO(str(tmp_path / "again.json"))
    for n, own in enumerate(made.annotation_ids.tolist()):
        assert theirs.anns[own]["iscrowd"] == made.crowd[n]
        np.testing.assert_allclose(np.array(theirs.anns[own]["bbox"])[2:], made.boxes[n, 2:] - made.boxes[n, :2])
    np.testing.assert_array_equal(theirs.annToMask(theirs.anns[11]), MASK)


def test_missing_fields_are_repaired_and_noted(tmp_path):
    content = document()
    for record in content["annotations"]:
        del record["area"], record["iscrowd"]
    content["annotations"][0]["area"] = 3.0
    d = coco.read(save(tmp_path, content))
    assert not d.crowd.any()
    # RLE pixels; two polygons, 100 + 9, each for itself; box; given; RLE pixels
    np.testing.assert_allclose(d.areas, [MASK.sum(), 100 + 9, 4, 3, MASK.sum()])
    assert d.notes == (
        "5 annotations without iscrowd taken as single objects: id 11, 4, 5, 12, 3",
        "4 annotations without area measured from the segmentation or the box: id 11, 4, 5, 3",
    )


def test_degenerate_boxes_are_left_out_and_noted(tmp_path):
    content = document()
    content["annotations"][0]["bbox"] = [1, 2, 0, 5]
    content["annotations"][4]["bbox"] = [1, 2, 3, -1]
    content["annotations"][1]["bbox"] = [1, 2, float("nan"), 4]  # not JSON, but written by many a script
    path = save(tmp_path, content)
    assert "NaN" in path.read_text()
    d = coco.read(path)
    assert d.annotation_ids.tolist() == [4, 3] and d.first.tolist() == [0, 1, 1, 2, 2]
    assert d.notes == ("3 annotations without a positive width and height left out: id 12, 11, 5",)
    assert list(d.rles) == [1]
    np.testing.assert_array_equal(d.polygons(0)[1].ravel(), [2, 2, 5, 2, 5, 5, 2, 5])


def test_no_annotations_at_all(tmp_path):
    d = coco.read(save(tmp_path, document() | {"annotations": []}))
    assert d.num_annotations == 0 and d.boxes.shape == (0, 4) and d.first.tolist() == [0] * 5
    coco.write(d, tmp_path / "again.json")
    same(coco.read(tmp_path / "again.json"), d)
    same(d.take([1, 2]), d.take([1, 2]))


def people(**changes):
    content = document()
    names = ["nose", "left_eye", "right_eye", "left_tail", "right_"]
    content["categories"][0]["keypoints"] = names
    content["annotations"][0]["keypoints"] = [1, 2, 2, 3.5, 4, 1, 0, 0, 0, 5, 6, 2, 7, 8, 2]
    content["annotations"][0] |= changes
    return content


def test_keypoints(tmp_path):
    d = coco.read(save(tmp_path, people()))
    assert d.keypoints.shape == (5, 5, 3) and d.keypoints.dtype == np.float32
    assert d.keypoints[3].tolist() == [[1, 2, 2], [3.5, 4, 1], [0, 0, 0], [5, 6, 2], [7, 8, 2]]
    assert not d.keypoints[[0, 1, 2, 4]].any()  # annotations without keypoints
    assert d.left_right == ((1, 2),)
    coco.write(d, tmp_path / "again.json")
    same(coco.read(tmp_path / "again.json"), d)
    assert json.loads((tmp_path / "again.json").read_text())["annotations"][3]["num_keypoints"] == 4


def test_keypoints_that_no_category_names_are_noted(tmp_path):
    content = people()
    del content["categories"][0]["keypoints"]
    d = coco.read(save(tmp_path, content))
    assert d.keypoints is None
    assert d.notes == ("1 annotation with keypoints, which no category names, read without them: id 12",)


def test_taking_images_is_the_same_as_reading_the_smaller_file(tmp_path):
    whole = coco.read(save(tmp_path, people()))
    for chosen in ([2], [2, 0], [3, 1], [0, 1, 2, 3], []):
        part = whole.take(chosen)
        assert part.image_ids.tolist() == whole.image_ids[chosen].tolist()
        if not chosen:
            assert part.num_images == part.num_annotations == 0
            continue
        content = people()
        content["images"] = [content["images"][i] for i in chosen]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        same(part, coco.read(save(tmp_path, content)))


def test_fingerprint_sees_every_change_but_not_the_place(tmp_path):
    base = coco.read(save(tmp_path, people()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert fingerprint(coco.read(save(elsewhere, people()), tmp_path)) == fingerprint(base)
    seen = {fingerprint(base)}
    for kind, position, field, value in [
        ("images", 1, "id", 8), ("images", 1, "file_name", "b.jpg"), ("images", 1, "width", 41),
        ("categories", 2, "name", "wasp"), ("annotations", 0, "bbox", [1.5, 2, 10, 20.000001]),
        ("annotations", 0, "category_id", 3), ("annotations", 0, "iscrowd", 1), ("annotations", 0, "area", 100.6),
        ("annotations", 0, "segmentation", [[1.5, 2.0, 11.5, 2.0, 1.5, 22.5]]), ("annotations", 0, "difficult", 1),
        ("annotations", 1, "segmentation", {"size": [30, 40], "counts": [1200]}),
        ("annotations", 0, "keypoints", [1, 2, 2, 3.5, 4, 1, 0, 0, 0, 5, 6, 2, 7, 8, 1]),
    ]:  # fmt: skip
        content = people()
        content[kind][position][field] = value
        seen.add(fingerprint(coco.read(save(tmp_path, content))))
    assert len(seen) == 13


def test_fractions_are_nested_exact_and_fixed_by_the_seed():
    tenth, half, full = (nested_fraction(103, f, 5) for f in (0.1, 0.5, 1.0))
    assert (len(tenth), len(half), len(full)) == (10, 52, 103) and full.dtype == np.int64
    np.testing.assert_array_equal(half[:10], tenth)
    np.testing.assert_array_equal(full[:52], half)
    np.testing.assert_array_equal(np.sort(full), np.arange(103))
    assert nested_fraction(103, 0.001, 5).tolist() == [full[0]]
    assert (nested_fraction(103, 1.0, 6) != full).any()
    assert nested_fraction(8, 1.0, 0).tolist() == [6, 2, 1, 7, 3, 0, 5, 4]  # pinned: results must stay comparable
    for fraction in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction = .* more than 0 and at most 1"):
            nested_fraction(103, fraction, 5)


@pytest.mark.parametrize("folder", [".", "images", "../made"])
def test_the_image_folder_is_found(tmp_path, folder):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    image = annotations / folder / "sub" / "50.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    d = coco.read(save(annotations, document()))
    assert d.image_path(0).resolve() == image.resolve()


def change(kind, position, field, value):
    def apply(content):
        content[kind][position][field] = value

    return apply


def drop(kind, position, field):
    return lambda content: content[kind][position].pop(field)


LONG = 10**30
BAD = {
    "box of three": (change("annotations", 0, "bbox", [1, 2, 3]), "annotation 12: bbox = [1, 2, 3]: expected four"),
    "box of text": (change("annotations", 0, "bbox", [1, 2, "3", 4]), "annotation 12: bbox = [1, 2, '3', 4]"),
    "box of null": (change("annotations", 0, "bbox", None), "annotation 12: bbox = None: expected four numbers"),
    "box as text": (change("annotations", 0, "bbox", "1234"), "annotation 12: bbox = '1234': expected four numbers"),
    "box as dict": (change("annotations", 0, "bbox", {"x": 1}), "annotation 12: bbox = {'x': 1}: expected four"),
    "box far away": (change("annotations", 0, "bbox", [1, 2, 1e9, 4]), "annotation 12: bbox = [1, 2, 1000000000.0, 4]"),
    "box very far away": (
        change("annotations", 0, "bbox", [1, 2, 10**30, 4]),
        "expected coordinates within ±1000000 pixels",
    ),
    "box of true": (change("annotations", 0, "bbox", [1, 2, True, 4]), "annotation 12: bbox = [1, 2, True, 4]: exp"),
    "box misspelt": (
        lambda c: c["annotations"][0].update(bboxes=c["annotations"][0].pop("bbox")),
        "annotation 12: field 'bbox' is missing: expected four numbers [x, y, width, height] in pixels (nearest name"
        " there: 'bboxes')",
    ),
    "unknown category": (
        change("annotations", 2, "category_id", 80),
        "annotation 3: category_id = 80: expected the id of one of the categories (nearest: 90)",
    ),
    "unknown image": (
        change("annotations", 2, "image_id", 49),
        "annotation 3: image_id = 49: expected the id of one of the images (nearest: 50)",
    ),
    "image id as text": (change("annotations", 2, "image_id", "50"), "annotation 3: image_id = '50': expected the id"),
    "no category": (drop("annotations", 2, "category_id"), "annotation 3: field 'category_id' is missing"),
    "no annotation id": (drop("annotations", 2, "id"), "annotations[2]: field 'id' is missing: expected an integer"),
    "annotation id a float": (change("annotations", 2, "id", 1.5), "annotations[2]: id = 1.5: expected an integer"),
    "annotation id huge": (change("annotations", 2, "id", 2**63), f"id = {2**63}: expected an integer"),
    "annotation id true": (change("annotations", 2, "id", True), "annotations[2]: id = True: expected an integer"),
    "annotation ids twice": (change("annotations", 2, "id", 12), "annotations: id = 12 is given 2 times: expected"),
    "annotation a list": (lambda c: c["annotations"].append([1]), "annotations[5] = [1]: expected a JSON object"),
    "image ids twice": (change("images", 1, "id", 900), "images: id = 900 is given 2 times: expected once"),
    "file names twice": (
        change("images", 1, "file_name", "sub/0.jpg"),
        "images: file_name = sub/0.jpg is given 2 times: expected once",
    ),
    "image id as text there": (change("images", 1, "id", "7"), "images[1]: id = '7': expected an integer"),
    "no file name": (drop("images", 1, "file_name"), "image 7: field 'file_name' is missing: expected text"),
    "file name a number": (change("images", 1, "file_name", 7), "image 7: file_name = 7: expected text"),
    "no width": (drop("images", 1, "width"), "image 7: field 'width' is missing: expected an integer number of pixels"),
    "width of 0": (change("images", 1, "width", 0), "image 7: width = 0: expected an integer number of pixels"),
    "height a float": (change("images", 1, "height", 30.5), "image 7: height = 30.5: expected an integer"),
    "image too large": (
        lambda c: c["images"][1].update(height=10**6, width=10**6),
        "image 7: height, width = [1000000, 1000000]: expected at most 89478485 pixels",
    ),
    "no images": (lambda c: c.update(images=[]), "images = []: expected at least one image"),
    "no categories": (lambda c: c.update(categories=[]), "categories = []: expected at least one category"),
    "images a dict": (lambda c: c.update(images={}), "file: images = {}: expected a list"),
    "annotations misspelt": (
        lambda c: c.update(annotation=c.pop("annotations")),
        "file: field 'annotations' is missing: expected a list (nearest name there: 'annotation')",
    ),
    "category ids twice": (change("categories", 1, "id", 90), "categories: id = 90 is given 2 times: expected once"),
    "category names twice": (change("categories", 1, "name", "bee"), "categories: name = bee is given 2 times"),
    "category name empty": (change("categories", 1, "name", ""), "category 0: name = '': expected text"),
    "area as text": (
        change("annotations", 0, "area", "5"),
        "annotation 12: area = '5': expected a number of 0",
    ),
    "area negative": (change("annotations", 0, "area", -5), "annotation 12: area = -5: expected a number of 0 or more"),
    "iscrowd of 2": (change("annotations", 0, "iscrowd", 2), "annotation 12: iscrowd = 2: expected 0 or 1"),
    "iscrowd as text": (change("annotations", 0, "iscrowd", "no"), "annotation 12: iscrowd = 'no': expected 0 or 1"),
    "iscrowd a list": (change("annotations", 0, "iscrowd", [1]), "annotation 12: iscrowd = [1]: expected 0 or 1"),
    "difficult as text": (change("annotations", 0, "difficult", "x"), "annotation 12: difficult = 'x': expected 0 or"),
    "polygon of 2 points": (
        change("annotations", 3, "segmentation", [TRIANGLE, [1, 2, 3, 4]]),
        "annotation 4: segmentation[1] = [1, 2, 3, 4]: expected a list of polygons, each [x1, y1, x2, y2, …] of 3",
    ),
    "polygon with odd count": (
        change("annotations", 0, "segmentation", [[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 12: segmentation[0] = [1, 2, 3, 4, 5, 6, 7]: expected a list of polygons",
    ),
    "polygon not in a list": (
        change("annotations", 0, "segmentation", TRIANGLE),
        "annotation 12: segmentation[0] = 1.5: expected a list of polygons",
    ),
    "polygon of points": (
        change("annotations", 0, "segmentation", [[[1, 2], [3, 4], [5, 6]]]),
        "annotation 12: segmentation[0] = [[1, 2], [3, 4], [5, 6]]: expected a list of polygons",
    ),
    "polygon with text": (
        change("annotations", 0, "segmentation", [[1, 2, 3, "4", 5, 6]]),
        "annotation 12: segmentation[0] = [1, 2, 3, '4', 5, 6]: expected a list of polygons",
    ),
    "polygon with NaN": (
        change("annotations", 3, "segmentation", [TRIANGLE, [1, 2, 3, float("nan"), 5, 6]]),
        "annotation 4: segmentation[1] = nan: expected finite coordinates within ±1000000 pixels",
    ),
    "polygon with infinity": (
        change("annotations", 0, "segmentation", [[1, 2, 3, float("inf"), 5, 6]]),
        "annotation 12: segmentation[0] = inf: expected finite coordinates",
    ),
    "polygon huge": (change("annotations", 0, "segmentation", [[1, 2, 3, LONG, 5, 6]]), "annotation 12: segmentation"),
    "segmentation as text": (change("annotations", 0, "segmentation", "x"), "annotation 12: segmentation = 'x': exp"),
    "RLE of another size": (
        change("annotations", 1, "segmentation", COMPRESSED | {"size": [40, 30]}),
        "expected RLE with size [30, 40], that of the image (got size [40, 30])",
    ),
    "RLE too short": (
        change("annotations", 1, "segmentation", {"size": [30, 40], "counts": [100, 20]}),
        "annotation 11: segmentation = {'size': [30, 40], 'counts': [100, 20]}: expected RLE whose runs add up to"
        " 30 * 40 = 1200 (got 120)",
    ),
    "RLE negative": (
        change("annotations", 1, "segmentation", {"size": [30, 40], "counts": [-100, 1300]}),
        "annotation 11: segmentation = {'size': [30, 40], 'counts': [-100, 1300]}: expected RLE with counts of 0",
    ),
    "RLE of floats": (
        change("annotations", 1, "segmentation", {"size": [30, 40], "counts": [1200.0]}),
        "annotation 11: segmentation = {'size': [30, 40], 'counts': [1200.0]}: expected RLE with counts that are int",
    ),
    "RLE huge": (change("annotations", 1, "segmentation", {"size": [30, 40], "counts": [LONG]}), "annotation 11: segm"),
    "RLE without counts": (change("annotations", 1, "segmentation", {"size": [30, 40]}), "annotation 11: segmentation"),
    "RLE text cut": (
        change("annotations", 1, "segmentation", COMPRESSED | {"counts": COMPRESSED["counts"][:-9]}),
        "annotation 11: segmentation",
    ),
    "RLE text unfinished": (
        change("annotations", 1, "segmentation", COMPRESSED | {"counts": "o"}),
        "expected counts that are whole COCO run-length text",
    ),
    "RLE text foreign": (
        change("annotations", 1, "segmentation", COMPRESSED | {"counts": "ü z"}),
        "expected counts that are whole COCO run-length text",
    ),
    "RLE text overflowing": (
        change("annotations", 1, "segmentation", COMPRESSED | {"counts": "o" * 20 + "0"}),
        "expected counts whose every run fits an image",
    ),
}
BAD_KEYPOINTS = {
    "too few": (people(keypoints=[1, 2, 2]), "annotation 12: keypoints = [1, 2, 2]: expected 5 times x, y, visib"),
    "visibility of 3": (people(keypoints=[1, 2, 3] * 5), "expected 5 times x, y, visibility (0, 1 or 2), 15 finite"),
    "text": (people(keypoints=["1", 2, 2] * 5), "annotation 12: keypoints = ['1', 2, 2,"),
    "NaN": (people(keypoints=[float("nan"), 2, 2] * 5), "annotation 12: keypoints = [nan, 2, 2,"),
}


def refusal(path):
    with pytest.raises(ValueError) as error:
        coco.read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300
    return message


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, case):
    damage, expected = BAD[case]
    content = document()
    damage(content)
    assert expected in refusal(save(tmp_path, content))


@pytest.mark.parametrize("case", BAD_KEYPOINTS)
def test_wrong_keypoints_are_named(tmp_path, case):
    content, expected = BAD_KEYPOINTS[case]
    assert expected in refusal(save(tmp_path, content))


def test_wrong_keypoint_names_are_named(tmp_path):
    content = people()
    content["categories"][1]["keypoints"] = ["beak"]
    assert "category 0: keypoints = ['beak']: expected the same names as" in refusal(save(tmp_path, content))
    content["categories"][1]["keypoints"] = ["beak", "beak"]
    assert "category 0: keypoints = ['beak', 'beak']: expected a list of different" in refusal(save(tmp_path, content))


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/a.jpg", "a/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a\\b.jpg", "a\0.jpg"]
)
def test_a_file_name_that_leaves_the_image_folder_is_refused(tmp_path, name):
    content = document()
    content["images"][2]["file_name"] = name
    expected = f"image 0: file_name = {name!r}: expected a path that stays inside the image folder"
    assert expected in refusal(save(tmp_path, content))


def test_harmless_dots_in_a_file_name_stay(tmp_path):
    content = document()
    content["images"][2]["file_name"] = "a..b/c...jpg"
    assert coco.read(save(tmp_path, content)).file_names[2] == "a..b/c...jpg"


def test_invalid_json_names_the_line(tmp_path):
    text = json.dumps(document(), indent=1)
    lines = text.splitlines()
    lines[6] = lines[6].replace(":", "")
    assert ": line 7, column " in refusal(save(tmp_path, "\n".join(lines)))
    assert ": line 1, column 1: not valid JSON" in refusal(save(tmp_path, ""))
    assert "not valid JSON" in refusal(save(tmp_path, text[:500]))
    assert "not valid JSON" in refusal(save(tmp_path, text.replace("100.5", "NaN")[:-1]))
    assert ": [1, 2]: expected a JSON object with images" in refusal(save(tmp_path, "[1, 2]"))
    path = save(tmp_path, text)
    path.write_bytes(text.encode().replace(b"zebra", b"z\xffbra"))
    line = text[: text.index("zebra")].count("\n") + 1
    assert f": line {line}: byte 0xff is not UTF-8 text" in refusal(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no fault
    assert coco.read(path).num_images == 4


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_beside_a_number_that_is_no_json(tmp_path, case):
    """NaN makes the reader parse the file in another way, with the same messages."""
    damage, expected = BAD[case]
    content = document()
    damage(content)
    content["info"] = float("nan")
    assert expected in refusal(save(tmp_path, content))


def test_damaged_json_is_refused(tmp_path):
    text = json.dumps(document(), indent=1)
    for at in [k for k, character in enumerate(text) if character in "{}[],:"][::3]:  # one mark too few, or doubled
        for damaged in (text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:]):
            assert ": line " in refusal(save(tmp_path, damaged)) or "expected" in refusal(save(tmp_path, damaged))


@pytest.mark.parametrize(
    "skipped", ['"x": "\xff"', '"x": "\\q"', '"x": 01', '"x": [1,]', '"\xff": 1', '"x": "\\ud800"']
)
def test_what_is_skipped_must_be_json_too(tmp_path, skipped):
    text = json.dumps(document()).replace('"license": 3', skipped, 1)
    path = save(tmp_path, text)
    path.write_bytes(text.encode("latin-1"))
    assert ": line 1" in refusal(path)


def test_fields_of_any_text_are_skipped(tmp_path):
    content = document()
    tricks = ['"annotations": [', "\\", '\\"', '"}]', "}, {", "é\n", '\\\\"']
    content = {"info": {"annotations": [{"a": 1}, {"b": [{}]}], "tricks": tricks}} | content
    for record, trick in zip(content["annotations"], tricks):
        record |= {"note": trick, "deeper": {"annotations": [{"x": [trick]}]}}
    expected = coco.from_document(document(), tmp_path)
    for options in ({"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        for ordered in (content, dict(reversed(content.items()))):
            same(coco.read(save(tmp_path, json.dumps(ordered, **options))), expected)


def test_missing_file_names_the_nearest(tmp_path):
    save(tmp_path, document())
    message = refusal(tmp_path / "instance_made.json")
    assert "no such annotation file (nearest name there: 'instances_made.json')" in message
    assert "is a folder: expected a regular file" in refusal(tmp_path)


def test_collecting_garbage_is_switched_back_on(tmp_path):
    assert gc.isenabled()
    refusal(save(tmp_path, "["))
    assert gc.isenabled()


def test_reading_leaves_a_given_document_of_others_alone(tmp_path):
    content = document()
    kept = copy.deepcopy(content["images"])
    coco.from_document(content, "made", tmp_path)
    assert kept == document()["images"]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["instances_train2017", "instances_val2017", "person_keypoints_train2017"])
def test_real_coco_equals_pycocotools(tmp_path, real_data, name):
    path = real_data / "tiny_coco" / "annotations" / f"{name}.json"
    d, theirs = coco.read(path), COCO(str(path))
    assert d.notes == () and d.num_images == 50 and d.num_annotations == len(theirs.anns)
    assert d.image_path(0).is_file() and d.load_image(0).shape == (d.heights[0], d.widths[0], 3)
    for i in range(50):
        for n in range(d.first[i], d.first[i + 1]):
            record = theirs.anns[int(d.annotation_ids[n])]
            assert record["image_id"] == d.image_ids[i] and record["category_id"] == d.category_ids[d.labels[n]]
            np.testing.assert_allclose(d.boxes[n, 2:] - d.boxes[n, :2], record["bbox"][2:], atol=1e-9)
            if d.keypoints is not None:
                assert d.keypoints[n].ravel().tolist() == record["keypoints"]
    coco.write(d, tmp_path / "again.json")
    same(coco.read(tmp_path / "again.json", d.image_dir), d)
