"""The embedded data: bytes from seeds, true annotations, every class, and no other set overwritten."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools import mask as coco_mask

from cli_call import call
from headstart.data.shapes import drawing as forms
from headstart.data.shapes import scenes
from headstart.data.shapes import write as shapes
from headstart.ops.polygons import area

SIZE = 64
ALL_FORMS = {**forms.DETECTION_FORMS, **forms.CLASSIFICATION_FORMS}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def detection(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("detection")
    shapes.generate(out, 120, 30, 7, SIZE, processes=1)
    return out


@pytest.fixture(scope="module")
def annotations(detection) -> list[dict]:
    return json.loads((detection / "train.json").read_text())["annotations"]


def _segments_cross(polygon: np.ndarray) -> bool:
    """Whether two edges that are not neighbours touch, by brute force."""

    def side(p, q, r):
        return np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    num = len(polygon)
    for i in range(num):
        for j in range(i + 2, num - (i == 0)):
            a, b, c, d = polygon[i], polygon[(i + 1) % num], polygon[j], polygon[(j + 1) % num]
            if side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0:
                return True
    return False


def test_same_seed_gives_the_same_bytes_with_one_and_two_processes(detection, tmp_path):
    shapes.generate(tmp_path, 120, 30, 7, SIZE, processes=2)
    assert _digest(tmp_path) == _digest(detection)


def test_classification_bytes_do_not_depend_on_processes(tmp_path):
    for processes in (1, 2):
        shapes.generate_classes(tmp_path / str(processes), 110, 24, 7, 32, processes=processes)
    assert _digest(tmp_path / "1") == _digest(tmp_path / "2")


def test_another_seed_or_split_gives_other_pictures(detection, tmp_path):
    shapes.write_detection(tmp_path, shapes.Split("val", 30, 8, SIZE))
    names = [f"{index:06d}.jpg" for index in range(30)]
    val, other, train = ([(folder / name).read_bytes() for name in names]
                         for folder in (detection / "val", tmp_path / "val", detection / "train"))  # fmt: skip
    assert len({*val, *other, *train}) == 90


def test_a_small_set_is_the_beginning_of_a_large_one(detection, tmp_path):
    shapes.write_detection(tmp_path, shapes.Split("train", 10, 7, SIZE))
    for index in range(10):
        name = f"train/{index:06d}.jpg"
        assert (tmp_path / name).read_bytes() == (detection / name).read_bytes()


def test_the_bytes_of_a_seed_stay_what_they_were():
    """Pins the drawing itself; whoever changes it raises shapes.VERSION and this value."""
    image, found = scenes.scene(3, seed=0, split="train", size=96)
    content = image.tobytes() + json.dumps(found).encode()
    assert shapes.VERSION == 1
    assert hashlib.sha256(content).hexdigest()[:16] == "80ccf13c06fb3b0e"


@pytest.mark.parametrize("name", ALL_FORMS)
def test_outlines_are_simple_polygons(name):
    rng = np.random.default_rng(0)
    for extent in (7.0, 40.0):
        polygon = forms.place(ALL_FORMS[name], rng, extent, (30.0, 30.0))
        assert not _segments_cross(polygon)
        assert area(polygon) > 0.1 * extent**2 * 0.8
        assert np.ptp(polygon, axis=0).max() == pytest.approx(extent, abs=0.011)


def test_half_of_the_detection_forms_are_concave():
    def concave(polygon):
        edge = np.roll(polygon, -1, axis=0) - polygon
        turn = edge[:, 0] * np.roll(edge, -1, axis=0)[:, 1] - edge[:, 1] * np.roll(edge, -1, axis=0)[:, 0]
        return (turn > 1e-9).any() and (turn < -1e-9).any()

    found = {name for name, form in forms.DETECTION_FORMS.items() if concave(form(0.5))}
    assert found == {"star", "cross", "crescent", "arrow", "heart"}


@pytest.mark.parametrize("name", ALL_FORMS)
def test_rasterise_equals_point_in_polygon(name):
    polygon = forms.place(ALL_FORMS[name], np.random.default_rng(1), 25.0, (20.0, 12.0)) + 0.003  # no sample on an edge
    top, left, inside = forms.rasterise(polygon, 32)
    y, x = (np.mgrid[: 32 * forms.SAMPLES, : 32 * forms.SAMPLES] + 0.5) / forms.SAMPLES
    expected = Outline(polygon).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(y.shape)
    found = np.zeros_like(expected)
    rows, columns = top * forms.SAMPLES, left * forms.SAMPLES
    found[rows : rows + inside.shape[0], columns : columns + inside.shape[1]] = inside
    np.testing.assert_array_equal(found, expected)


def test_polygon_outside_the_picture_rasterises_to_nothing():
    assert forms.rasterise(np.array([[40.0, 1.0], [50.0, 1.0], [45.0, 9.0]]), 32)[2].size == 0


def test_boxes_and_areas_are_those_of_the_visible_masks(annotations):
    kinds = set()
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        kinds.add(type(segmentation))
        if isinstance(segmentation, dict):
            mask = coco_mask.decode(segmentation).astype(bool)
        else:
            polygon = np.array(segmentation[0]).reshape(-1, 2)
            top, left, inside = forms.rasterise(polygon, SIZE)
            centre = forms.centres(inside)
            mask = np.zeros((SIZE, SIZE), bool)
            mask[top : top + centre.shape[0], left : left + centre.shape[1]] = centre
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert annotation["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["area"] == mask.sum() >= scenes.MIN_PIXELS
    assert kinds == {list, dict}


def test_masks_of_one_picture_do_not_overlap(annotations):
    covered: dict[int, np.ndarray] = {}
    for annotation in annotations:
        if isinstance(annotation["segmentation"], dict):
            mask = coco_mask.decode(annotation["segmentation"])
            covered[annotation["image_id"]] = covered.get(annotation["image_id"], 0) + mask
    assert max(total.max() for total in covered.values()) == 1


def test_counts_classes_and_negatives(detection, annotations):
    content = json.loads((detection / "train.json").read_text())
    ids = [category["id"] for category in content["categories"]]
    assert {annotation["category_id"] for annotation in annotations} == set(ids)
    assert np.diff(ids).min() >= 1 and np.diff(ids).max() > 1
    per_image = np.bincount([annotation["image_id"] for annotation in annotations], minlength=121)[1:]
    assert per_image.max() == 6
    assert 0.02 < (per_image == 0).mean() < 0.16
    assert content["info"]["seed"] == 7
    assert Image.open(detection / "train" / content["images"][0]["file_name"]).size == (SIZE, SIZE)


def test_sizes_span_the_range_that_is_stated():
    rng = np.random.default_rng(0)
    extents = [np.ptp(scenes._try_object(rng, 96, scenes.USUAL).polygon, axis=0).max() / 96 for _ in range(400)]
    assert scenes.SCALE[0] - 1e-3 < min(extents) < 0.11
    assert 0.55 < max(extents) < scenes.SCALE[1] + 1e-3


def test_classification_folders_hold_other_forms_in_equal_numbers(tmp_path):
    train, val = shapes.generate_classes(tmp_path, 27, 12, 0, 32)
    assert (train, val) == (tmp_path / "train", tmp_path / "val")
    counts = {folder.name: len(list(folder.glob("*.jpg"))) for folder in train.iterdir()}
    assert set(counts) == set(forms.CLASSIFICATION_FORMS) and sorted(counts.values()) == [2] * 9 + [3] * 3
    assert not set(counts) & set(forms.DETECTION_FORMS)
    assert json.loads((tmp_path / "train.txt").read_text())["num_images"] == 27


def test_a_finished_set_is_not_made_again_and_an_unfinished_one_is_completed(tmp_path):
    calls = []
    shapes.generate(tmp_path, 3, 2, 0, 32, progress=lambda: calls.append(1))
    assert len(calls) == 5
    before, written = _digest(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    shapes.generate(tmp_path, 3, 2, 0, 32, progress=lambda: calls.append(1))
    assert len(calls) == 10
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))] == written
    (tmp_path / "train" / "000001.jpg").unlink()
    (tmp_path / "val.json").unlink()
    shapes.generate(tmp_path, 3, 2, 0, 32)
    assert _digest(tmp_path) == before


def test_other_data_are_left_alone(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"train\.json: holds another data set"):
        shapes.generate(tmp_path, 3, 2, 0, 32)
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds 1 other files \(holiday\.jpg\)"):
        shapes.generate(tmp_path / "b", 3, 2, 0, 32)
    assert (tmp_path / "train.json").read_text() == '{"images": []}'


def test_pictures_of_the_user_under_our_names_are_left_alone(tmp_path):
    """A picture that was cut off is completed; one of another content, or a changed JSON, stays and is named."""
    shapes.generate(tmp_path, 3, 2, 0, 32)
    before, picture, marker = _digest(tmp_path), tmp_path / "train/000001.jpg", tmp_path / "train.json"
    whole, text = picture.read_bytes(), marker.read_text()
    marker.unlink()
    picture.write_bytes(whole[:100])
    shapes.generate(tmp_path, 3, 2, 0, 32)
    assert _digest(tmp_path) == before
    for content in (b"mine", whole + b"x", whole[:50] + b"\0" + whole[51:]):
        picture.write_bytes(content)
        marker.unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"train/000001\.jpg: holds something else than what belongs there"):
            shapes.generate(tmp_path, 3, 2, 0, 32)
        assert picture.read_bytes() == content and not marker.exists()
    picture.unlink()
    changed = text.replace('"iscrowd":0', '"iscrowd":1', 1)
    assert changed != text
    marker.write_text(changed)
    with pytest.raises(ValueError, match=r"train\.json: holds something else"):
        shapes.generate(tmp_path, 3, 2, 0, 32)
    assert marker.read_text() == changed


def test_another_seed_in_the_same_place_is_refused(tmp_path):
    shapes.generate(tmp_path, 3, 2, 0, 32)
    with pytest.raises(ValueError, match="holds another data set"):
        shapes.generate(tmp_path, 3, 2, 1, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1, 0, 96), "num_images: 0"), ((1, 1, -1, 96), "seed: -1"), ((1, 1, 0, 8), "size: 8")],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes.generate(tmp_path, *arguments)
    with pytest.raises(ValueError, match="num_classes: 13, expected 2 to 12"):
        shapes.write_classification(tmp_path, shapes.Split("train", 3, 0, 64), num_classes=13)


@pytest.mark.parametrize(
    ("option", "message"),
    [("--size", "size: 0 is too small"), ("--objects", "objects: 0, expected 1"), ("--smallest", "smallest: 0.0, exp")],
)
def test_zero_is_a_value(tmp_path, monkeypatch, capsys, option, message):
    made = call(monkeypatch, capsys, "data", "shapes", tmp_path / "out", option, "0")
    assert made.code == 2 and message in made.err and not (tmp_path / "out").exists()


def test_few_large_objects(tmp_path):
    """A layout bounds number and size, is part of the set's origin, and leaves the usual one's bytes alone."""
    layout = scenes.Layout(objects=2, smallest=0.4)
    path, *_ = shapes.generate(tmp_path, 60, 1, 7, SIZE, layout=layout, processes=1)
    content = json.loads(path.read_text())
    counts = np.bincount([a["image_id"] for a in content["annotations"]], minlength=61)[1:]
    assert set(counts) == {0, 1, 2}
    whole = [a for a in content["annotations"] if isinstance(a["segmentation"], list)]
    assert min(max(a["bbox"][2:]) for a in whole) >= 0.4 * SIZE - 1 and len(whole) > 20
    assert content["info"].items() >= {"objects": 2, "smallest": 0.4}.items()
    with pytest.raises(ValueError, match=r"train\.json: holds another data set"):
        shapes.generate(tmp_path, 60, 1, 7, SIZE, processes=1)
    for given, message in (((0, 0.1), "objects: 0, expected 1 to 6"), ((6, 0.7), "smallest: 0.7, expected 0.1 to 0.6")):
        with pytest.raises(ValueError, match=message):
            scenes.Layout(*given)


def test_chosen_classes_alone_are_drawn_and_listed(tmp_path):
    """Of a larger palette nothing changes but the classes: their ids stay."""
    layout = scenes.Layout(kinds=("star", "disc"))
    path, *_ = shapes.generate(tmp_path, 40, 1, 7, SIZE, layout=layout, processes=1)
    content = json.loads(path.read_text())
    assert content["categories"] == [
        {"id": 1, "name": "disc", "supercategory": "shape"}, {"id": 7, "name": "star", "supercategory": "shape"}
    ]  # fmt: skip
    assert {a["category_id"] for a in content["annotations"]} == {1, 7} and "objects" not in content["info"]
    labels = shapes.write_labels(tmp_path / "maps", shapes.Split("train", 8, 7, SIZE, 1, None, layout))
    assert [c["id"] for c in json.loads(labels.read_text())["categories"]] == [0, 1, 7]
    with pytest.raises(ValueError, match=r"train\.json: holds another data set"):
        shapes.generate(tmp_path, 40, 1, 7, SIZE, processes=1)
    for kinds, named in ((("disk",), "disk"), ((), "none")):
        with pytest.raises(ValueError, match=f"kind: {named}, expected some of disc, square"):
            scenes.Layout(kinds=kinds)


def test_keypoints_are_corners_and_change_nothing_else(detection, tmp_path):
    shapes.generate(tmp_path, 120, 30, 7, SIZE, keypoints=True, processes=1)
    plain, pointed = (json.loads((folder / "train.json").read_text()) for folder in (detection, tmp_path))
    seen, open_view = {0: 0, 1: 0, 2: 0}, []
    for before, after in zip(plain["annotations"], pointed["annotations"], strict=True):
        points = after.pop("keypoints", None)
        labelled = after.pop("num_keypoints", None)
        assert before == after
        assert (points is not None) == (after["category_id"] == 16)  # the arrow
        if points is None:
            continue
        points = np.array(points).reshape(5, 3)
        assert labelled == (points[:, 2] > 0).sum()
        for value in points[:, 2]:
            seen[int(value)] += 1
        if isinstance(after["segmentation"], list):  # in full view: corners of the polygon, all of them seen
            polygon = np.array(after["segmentation"][0]).reshape(-1, 2)
            np.testing.assert_allclose(points[:, :2] + 0.5, polygon[[3, 2, 4, 0, 6]], atol=0.011)
            open_view += (points[:, 2] == 2).tolist()
            tip, left, right = points[0, :2], points[1, :2], points[2, :2]
            middle = (points[3, :2] + points[4, :2]) / 2
            ahead, across = tip - middle, right - left
            assert ahead[0] * across[1] - ahead[1] * across[0] > 0  # y points down: the right wing is on the right
    assert min(seen.values()) > 3 and np.mean(open_view) > 0.95  # a corner may share its pixel with a neighbour
    for index in range(120):
        name = f"train/{index:06d}.jpg"
        assert (tmp_path / name).read_bytes() == (detection / name).read_bytes()
    assert [c.get("keypoints") for c in pointed["categories"] if c["id"] != 16] == [None] * 7


def test_label_maps_are_the_annotated_masks(tmp_path):
    train, _, labels, _ = shapes.generate(tmp_path, 12, 3, 7, SIZE, semantic=True, processes=1)
    content, listed = json.loads(train.read_text()), json.loads(labels.read_text())
    assert listed["annotations"] == [] and [c["id"] for c in listed["categories"]] == [0, *scenes.CATEGORY_IDS]
    assert [image["file_name"] for image in listed["images"]] == [image["file_name"] for image in content["images"]]
    for image in content["images"]:
        picture = Image.open(tmp_path / "train_labels" / image["file_name"].replace(".jpg", ".png"))
        found = np.asarray(picture)
        wanted = np.zeros((SIZE, SIZE), np.uint8)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                segment = annotation["segmentation"]
                rle = coco_mask.frPyObjects(segment, SIZE, SIZE)[0] if isinstance(segment, list) else segment
                wanted[coco_mask.decode(rle) > 0] = annotation["category_id"]
        assert picture.mode == "P" and (found != wanted).mean() < 0.02  # pycocotools rounds polygons its own way
        assert set(np.unique(found)) == set(np.unique(wanted)) and found.any() == wanted.any()
    before = _digest(tmp_path)
    shapes.generate(tmp_path, 12, 3, 7, SIZE, semantic=True, processes=1)
    assert _digest(tmp_path) == before
    with pytest.raises(ValueError, match=r"train\.json: holds another data set"):
        shapes.generate(tmp_path, 12, 3, 7, SIZE, keypoints=True, processes=1)
