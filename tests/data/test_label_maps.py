"""Label maps: from PNGs and from instances, checked; and sampled into batches without mixing labels."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from headstart.batch import IGNORE_LABEL
from headstart.data.check import doctor
from headstart.data.label_maps import InstanceLabels, PixelLabels, sample_labels
from headstart.data.read.coco import read
from headstart.data.views import View


def folder_with(tmp_path, values, *, mode="P", annotations=(), categories=((0, "sky"), (7, "road"), (30, "tree"))):
    """A data set of one image with the label map `values` [H,W]."""
    height, width = values.shape
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "a.jpg")
    picture = Image.fromarray(values.astype(np.uint8))
    picture = picture.convert("P") if mode == "P" else picture
    (tmp_path / "maps").mkdir(exist_ok=True)
    picture.save(tmp_path / "maps/a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": list(annotations),
        "categories": [{"id": own, "name": name} for own, name in categories],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read(tmp_path / "a.json", tmp_path)


def maps_of(data, tmp_path, ignore=(255,)):
    maps = PixelLabels(data, tmp_path / "maps", ignore=ignore)
    maps.check(2)
    return maps


@pytest.mark.parametrize("mode", ["P", "L"])
def test_values_are_category_ids_and_ignored_ones_unknown(tmp_path, mode):
    values = np.random.choice([0, 7, 30, 255], (13, 17))
    maps = maps_of(folder_with(tmp_path, values, mode=mode), tmp_path)
    wanted = np.select([values == 0, values == 7, values == 30], [0, 1, 2], IGNORE_LABEL)
    assert np.array_equal(maps(0), wanted) and maps.class_names == ("sky", "road", "tree")


def test_the_digest_is_of_the_maps_the_images_and_what_is_ignored(tmp_path):
    values = np.random.choice([0, 7, 30], (13, 17))
    data = folder_with(tmp_path, values)
    one = maps_of(data, tmp_path).content().digest
    assert maps_of(data, tmp_path).content().digest == one
    assert maps_of(data, tmp_path, ignore=()).content().digest != one
    values[3, 4] = 30 if values[3, 4] != 30 else 0
    assert maps_of(folder_with(tmp_path, values), tmp_path).content().digest != one


def test_maps_that_do_not_fit_are_named(tmp_path):
    values = np.zeros((13, 17))
    values[2, :3] = 31
    data = folder_with(tmp_path, values)
    with pytest.raises(ValueError, match=r"maps/a\.png: 3 pixels have the value 31, .*\(the nearest is 30\)"):
        maps_of(data, tmp_path)
    assert maps_of(data, tmp_path, ignore=(31,))(0)[2, 1] == IGNORE_LABEL
    with pytest.raises(ValueError, match=r"data\.ignore: 7 is a category"):
        maps_of(data, tmp_path, ignore=(7, 31))
    Image.fromarray(np.zeros((13, 18), np.uint8)).save(tmp_path / "maps/a.png")
    with pytest.raises(ValueError, match=r"a\.png: is 18 x 13 pixels, its image 5 is 17 x 13"):
        maps_of(data, tmp_path)
    Image.fromarray(np.zeros((13, 17, 3), np.uint8)).save(tmp_path / "maps/a.png")
    with pytest.raises(ValueError, match=r"a\.png: a label map of mode RGB, expected 8-bit grey or palette"):
        maps_of(data, tmp_path)
    (tmp_path / "maps/a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png: not a readable label map"):
        maps_of(data, tmp_path)
    (tmp_path / "maps/a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png: no such label map"):
        maps_of(data, tmp_path)
    far = folder_with(tmp_path, values, categories=((0, "sky"), (300, "road")))
    with pytest.raises(ValueError, match=r"category 300 cannot be a value of a label map"):
        maps_of(far, tmp_path)


def test_a_check_names_every_map_that_does_not_fit(tmp_path):
    values = np.zeros((13, 17))
    values[2, :3] = 31
    data = folder_with(tmp_path, values)
    labels = {"train": tmp_path / "maps"}
    codes = lambda **options: [(p.code, p.where) for p in doctor.check({"train": data}, **options).of("error")]  # noqa: E731
    assert [code for code, _ in codes()] == ["no-annotations"] and codes(labels=labels, ignore=(31,)) == []
    assert codes(labels=labels) == [("labels", str(tmp_path / "maps/a.png"))]
    line = doctor.check({"train": data}, labels=labels).lines()[0]
    assert line.endswith("a.png: 3 pixels have the value 31, which is no category id of "
                         f"{data.path} (the nearest is 30) and not in data.ignore")  # fmt: skip
    for value in (300, -1):
        (problem,) = doctor.check({"train": data}, labels=labels, ignore=(value,)).of("error")
        assert problem.message == f"data.ignore: {value}: expected values of 8-bit maps, 0 to 255"
    assert codes(labels=labels, ignore=(7,)) == [("labels", str(tmp_path / "maps"))]


def square(number, category, low, high, *, box_only=False):
    x = [low, low, high, low, high, high, low, high]
    annotation = {"id": number, "image_id": 5, "category_id": category, "bbox": [low, low, high - low, high - low]}
    return annotation | ({} if box_only else {"segmentation": [x], "iscrowd": 0, "area": (high - low) ** 2})


def test_instances_become_regions_the_smaller_in_front(tmp_path):
    """The union of each class, painted by brute force."""
    annotations = [
        square(1, 7, 4, 10),
        square(2, 30, 2, 18),  # larger, and later in the file
        square(3, 30, 12, 18),
        square(4, 7, 12, 18),  # as large as the one before: the later one has it
        square(5, 7, 16, 24, box_only=True),
    ]
    data = folder_with(tmp_path, np.zeros((24, 24)), annotations=annotations, categories=((7, "road"), (30, "tree")))
    maps = InstanceLabels(data)
    wanted = np.full((24, 24), 2)
    wanted[16:24, 16:24] = IGNORE_LABEL
    wanted[2:18, 2:18] = 1
    wanted[12:18, 12:18] = 0
    wanted[4:10, 4:10] = 0
    assert np.array_equal(maps(0), wanted)
    assert maps.class_ids == (7, 30, 0) and maps.class_names == ("road", "tree", "background")
    assert "1 objects have no segmentation" in maps.notes[-1]


def test_without_any_segmentation_instances_make_no_labels(tmp_path):
    data = folder_with(tmp_path, np.zeros((24, 24)), annotations=[square(5, 7, 6, 24, box_only=True)])
    with pytest.raises(ValueError, match=r"no object has a segmentation; .*data\.train_labels"):
        InstanceLabels(data)


@pytest.mark.parametrize("size", [(40, 60), (33, 21), (80, 97), (57, 31)])
def test_resizing_is_the_nearest_pixel(size):
    labels, half = np.random.randint(0, 9, (40, 60)).astype(np.int16), Fraction(1, 2)
    found = sample_labels(labels, View(size, False), (96, 128), 1)
    rows, columns = ([int((Fraction(i) + half) * n / m) for i in range(m)] for m, n in zip(size, labels.shape))
    assert np.array_equal(found[: size[0], : size[1]], labels[np.ix_(rows, columns)])
    assert (found[size[0] :] == IGNORE_LABEL).all() and (found[:, size[1] :] == IGNORE_LABEL).all()
    mirrored = sample_labels(labels, View(size, True), (96, 128), 1)
    assert np.array_equal(mirrored, sample_labels(labels[:, ::-1], View(size, False), (96, 128), 1))


@pytest.mark.parametrize("stride", [2, 4])
def test_a_coarser_grid_reads_the_pixels_under_its_centres(stride):
    labels = np.random.randint(0, 9, (43, 61)).astype(np.int16)
    found = sample_labels(labels, View((43, 61), False), (64, 64), stride)
    assert found.shape == (64 // stride, 64 // stride)
    wanted = np.full((64, 64), IGNORE_LABEL)
    wanted[:43, :61] = labels
    assert np.array_equal(found, wanted[stride // 2 :: stride, stride // 2 :: stride])
