"""Layouts of data sets in the wild: each is found by the content of its files, whatever lies beside them."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from headstart.data import read as formats
from headstart.data.check import doctor
from headstart.data.read import files as read_files
from headstart.data.read.layout import find_layout, top_keys
from layouts import (
    BOX,
    LAYOUTS,
    STRAY,
    TRAIN,
    VAL,
    coco_cvat,
    coco_flat,
    coco_text,
    csv_tensorflow,
    label,
    labelme_apart,
    labelme_beside,
    labelme_text,
    picture,
    voc_lower_case,
    voc_roboflow,
    voc_text,
    voc_usual,
    write,
    yolo_roboflow,
    yolo_text,
    yolo_ultralytics,
)


@pytest.mark.parametrize("stray", [False, True])
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_layout_is_found_whatever_lies_beside_it(tmp_path, make, stray):
    kind, splits = LAYOUTS[make]
    root = tmp_path / "My data: new"
    make(root)
    for name, text in STRAY.items() if stray else ():
        write(root / name, text) if text is not None else picture(root / name)
    assert formats.detect_format(root) == kind
    sources = formats.splits_of(find_layout(root))
    assert tuple(sources) == (splits or ("all",))
    expected = (TRAIN, VAL) if splits else (TRAIN + VAL,)
    for (name, source), stems in zip(sources.items(), expected, strict=True):
        data = formats.open_dataset(source.path, source.image_dir, source.split)
        assert [Path(file).stem for file in data.file_names] == list(stems)
        assert [data.class_names[c] for c in data.labels] == [label(stem) for stem in stems]
        assert data.class_names == ("cat", "dog")  # also where a split lacks one
        np.testing.assert_allclose(data.boxes, [BOX] * len(stems))
        assert all(data.image_path(i).is_file() for i in range(data.num_images))
        assert not {"preview", "trimaps"} & set(data.image_path(0).parts)
        if splits:
            again = formats.open_dataset(f"{root}:{name}")
            assert again.file_names == data.file_names
    report = doctor.check(sources)
    assert {problem.code for problem in report.of("error")} <= {"split-overlap"}, report.lines()  # plain pictures


def test_one_file_of_another_kind_does_not_decide(tmp_path):
    coco_flat(tmp_path)
    write(tmp_path / "train" / "a.xml", voc_text("a"))
    write(tmp_path / "train" / "b.json", labelme_text("b", "b.png"))
    assert formats.detect_format(tmp_path) == "coco"
    voc_lower_case(tmp_path / "voc")
    write(tmp_path / "voc" / "images" / "b.json", labelme_text("b", "b.png"))
    assert formats.detect_format(tmp_path / "voc") == "voc"


def test_several_data_sets_are_not_one(tmp_path):
    coco_flat(tmp_path / "cars")
    voc_usual(tmp_path / "cells")
    with pytest.raises(ValueError, match=r"holds several data sets: expected the folder of one \(among cars, cells\)"):
        formats.open_dataset(tmp_path)


def test_files_of_one_name_in_folders_that_are_no_splits_are_named(tmp_path):
    """Two exported tasks: none of them is read as the whole."""
    for task in ("one", "two"):
        write(tmp_path / "coco" / task / "instances_default.json", coco_text(TRAIN))
        write(tmp_path / "yolo" / task / "classes.txt", "cat\ndog\n")
        write(tmp_path / "yolo" / task / "b.txt", yolo_text("b"))
        for kind, stem in (("coco", "a"), ("yolo", "b")):
            picture(tmp_path / kind / task / f"{stem}.png")
    for kind, name in (("coco", "instances_default.json"), ("yolo", "classes.txt")):
        expected = rf"{kind}: no split fits 2 files: expected one of \['one/{name}', 'two/{name}'\]"
        with pytest.raises(ValueError, match=expected):
            formats.splits_of(find_layout(tmp_path / kind))
        with pytest.raises(ValueError, match=expected):
            formats.open_dataset(tmp_path / kind)


def test_pictures_elsewhere_than_annotations(tmp_path):
    voc_lower_case(tmp_path)
    data = formats.open_dataset(tmp_path / "annotations", tmp_path / "images")
    assert data.file_names == ("a.png", "b.png", "c.png", "d.png") and data.image_dir == tmp_path / "images"


@pytest.mark.parametrize("make", [voc_usual, coco_flat, yolo_roboflow, labelme_apart, csv_tensorflow, None])
def test_files_that_macos_adds_to_archives_are_nothing(tmp_path, make):
    """Beside each file ._NAME, or all of them below __MACOSX: as many as the data set has files."""
    if make is None:
        for name in ("cat/a", "cat/c", "dog/b", "dog/d"):
            picture(tmp_path / f"{name}.png")
    else:
        make(tmp_path)
    before = formats.splits_of(find_layout(tmp_path))
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        for place in (file.parent, tmp_path / "__MACOSX" / file.parent.relative_to(tmp_path)):
            write(place / f"._{file.name}", "\0\5\x16\7")
    assert formats.splits_of(find_layout(tmp_path)) == before
    for source in before.values():
        data = formats.open_dataset(source.path, source.image_dir, source.split)
        assert data.num_images in (1, 3, 4) and data.class_names == ("cat", "dog")


def test_the_folder_of_pictures_is_found_though_the_first_is_missing(tmp_path):
    coco_cvat(tmp_path)
    (tmp_path / "images" / "default" / "a.png").unlink()
    assert formats.open_dataset(tmp_path).image_dir == tmp_path / "images" / "default"


def test_annotated_folders_are_no_classes(tmp_path):
    """Pictures in images/, beside files that no reader knows, are not one class named images."""
    for stem in TRAIN:
        picture(tmp_path / "images" / f"{stem}.png")
    write(tmp_path / "annotations" / "environment.yml", STRAY["environment.yml"])
    with pytest.raises(ValueError, match=r"no known format: expected a COCO .*; found files: 3 \.png, 1 \.yml$"):
        formats.open_dataset(tmp_path)
    write(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    with pytest.raises(ValueError, match=r"annotations\.xml: CVAT's own XML: export as COCO 1\.0 or PASCAL VOC"):
        formats.open_dataset(tmp_path)


def test_a_broken_data_yaml_is_named(tmp_path):
    yolo_roboflow(tmp_path)
    write(tmp_path / "data.yaml", "train: [\n")
    with pytest.raises(ValueError, match=r"no known format: .*; data\.yaml: line 2: not valid YAML"):
        formats.open_dataset(tmp_path)


def test_pictures_of_another_data_set_above_a_data_yaml(tmp_path):
    """Roboflow writes ../valid/images for the folder beside the YAML; where both are there, none is guessed."""
    yolo_roboflow(tmp_path / "one")
    assert formats.open_dataset(tmp_path / "one", split="val").num_images == 1
    picture(tmp_path / "valid" / "images" / "z.png")
    with pytest.raises(
        ValueError, match=r"val = '\.\./valid/images': fits .*one/\.\./valid/images and .*one/valid/images"
    ):
        formats.open_dataset(tmp_path / "one", split="val")


def test_class_folders_with_splits(tmp_path):
    for name in ("train/cat/a", "train/dog/b", "valid/cat/c", "valid/dog/d"):
        picture(tmp_path / f"{name}.png")
    layout = find_layout(tmp_path)
    assert (layout.kind, layout.splits) == ("folders", ("train", "val"))
    assert formats.open_dataset(tmp_path, split="val").file_names == ("cat/c.png", "dog/d.png")
    assert formats.open_folders(f"{tmp_path}:valid").num_images == 2
    with pytest.raises(ValueError, match=r"split = None: expected one of \['train', 'valid'\]"):
        formats.open_dataset(tmp_path)


def test_pictures_in_one_folder_are_no_classes(tmp_path):
    """One class tells nothing apart: top1 would be 100 % for every start."""
    for name in ("train/cat/a", "val/cat/b"):
        picture(tmp_path / f"{name}.png")
    for root in (tmp_path, tmp_path / "train"):
        with pytest.raises(ValueError, match=r"no known format: .*, or one folder of images a class \(two or more\)"):
            find_layout(root)
    picture(tmp_path / "val" / "dog" / "c.png")
    assert find_layout(tmp_path).splits == ("train", "val")


def test_a_split_that_is_not_there_is_named(tmp_path):
    for make in (voc_roboflow, labelme_apart, csv_tensorflow, yolo_ultralytics, coco_flat):
        make(tmp_path / make.__name__)
        with pytest.raises(ValueError, match=r"split = 'dev'"):
            formats.open_dataset(tmp_path / make.__name__, split="dev")


def test_a_file_of_labelme_is_checked_as_one(tmp_path):
    """Not as COCO; and a picture that is elsewhere is missing, whatever path is written."""
    labelme_beside(tmp_path / "beside")
    assert doctor.check(doctor.sources([tmp_path / "beside" / "a.json"])).num_errors == 0
    labelme_apart(tmp_path / "apart")
    (problem,) = doctor.check(doctor.sources([tmp_path / "apart" / "json" / "train" / "a.json"])).of("error")
    assert (problem.code, problem.value) == ("image-missing", "a.png")


def test_labelme_shapes(tmp_path):
    picture(tmp_path / "a.png")
    triangle = {"label": "cat", "points": [[0, 0], [10, 0], [0, 10]], "shape_type": "polygon", "group_id": 7}
    other = triangle | {"points": [[20, 0], [30, 0], [20, 10]]}
    line = {"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "line"}
    odd = triangle | {"shape_type": ["polygon"]}
    file = write(tmp_path / "a.json", json.dumps({"shapes": [triangle, line, odd, other], "imagePath": "a.png"}))
    data = formats.open_dataset(tmp_path)
    assert data.boxes.tolist() == [[0, 0, 30, 10]] and len(data.polygons(0)) == 2 and data.areas.tolist() == [100]
    assert data.notes[-1] == "2 shapes left out that are neither polygon nor rectangle"
    assert formats.open_dataset(file).num_images == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"points": [[0, 0], [1, 1]]}, r"a\.json: shape 1: points = .*: expected at least 3 pairs"),
        ({"points": [[0, 0], [1, 1], [2, "x"]]}, r"a\.json: shape 1: coordinate = 'x': expected pixels"),
        ({"label": ""}, r"a\.json: shape 1: label = '': expected the name of a class"),
    ],
)
def test_wrong_labelme_is_named(tmp_path, change, expected):
    picture(tmp_path / "a.png")
    shape = {"label": "cat", "points": [[0, 0], [10, 0], [0, 10]], "shape_type": "polygon"}
    write(tmp_path / "a.json", json.dumps({"shapes": [shape | change], "imagePath": "a.png"}))
    with pytest.raises(ValueError, match=expected):
        formats.open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a.png,cat,1,2,x,4", r"boxes\.csv: line 2: xmax = 'x': expected a pixel coordinate"),
        ("z.png,cat,1,2,3,4", r"boxes\.csv: line 2: 'z\.png': no such picture below"),
        ("a.png,,1,2,3,4", r"boxes\.csv: line 2: no class: expected a name"),
        ("a.png,cat", r"boxes\.csv: line 2: 2 cells: expected at least 6"),
        ("a.png,,,,,", r"boxes\.csv: no row with a class: expected boxes"),
    ],
)
def test_wrong_csv_is_named(tmp_path, row, expected):
    picture(tmp_path / "a.png")
    write(tmp_path / "boxes.csv", f"file name,label,x1,y1,x2,y2\n{row}\n")
    with pytest.raises(ValueError, match=expected):
        formats.open_dataset(tmp_path)


def test_pictures_of_one_name_in_two_folders_of_csv(tmp_path):
    """The end of a path tells them apart, also one of another machine; a name alone does not."""
    for name in ("one/a", "two/a"):
        picture(tmp_path / f"{name}.png")
    rows = [f"/data/pets/{name}/a.png,{label(stem)},1,2,3,4\n" for name, stem in (("two", "a"), ("one", "b"))]
    table = write(tmp_path / "boxes.csv", "path,class,xmin,ymin,xmax,ymax\n" + "".join(rows))
    data = formats.open_dataset(tmp_path)
    assert data.file_names == ("two/a.png", "one/a.png") and data.labels.tolist() == [0, 1]
    write(table, table.read_text().replace("/data/pets/two/", ""))
    with pytest.raises(ValueError, match=r"line 2: 'a\.png': fits .*one/a\.png and .*two/a\.png: expected its folder"):
        formats.open_dataset(tmp_path)


def test_columns_of_csv_without_corners_are_named(tmp_path):
    picture(tmp_path / "images" / "a.png")
    table = write(tmp_path / "boxes.csv", "filename;x;y;w;h;class\na.png;1;2;3;4;cat\n")
    columns = r"'filename, x, y, w, h, class': expected filename, class, xmin, ymin, xmax, ymax"
    with pytest.raises(ValueError, match=rf"found files: .*; boxes\.csv: columns {columns}"):
        formats.open_dataset(tmp_path)
    with pytest.raises(ValueError, match=rf"boxes\.csv: line 1: columns {columns}"):
        formats.open_dataset(table)


def test_keys_of_the_outermost_object_only(tmp_path):
    text = '{"a": {"images": [{"b": 1}]}, "c\\"d": "annotations", "e": [1, "f"], "g": '
    assert top_keys(write(tmp_path / "x.json", text)) == {
        "a": False, 'c\\"d': False, "e": True, "g": False
    }  # fmt: skip
    assert top_keys(write(tmp_path / "y.json", '[{"images": 1}]')) == {}


def test_a_name_that_no_file_can_have_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"no such file or folder: expected"):
        find_layout(tmp_path / ("x" * 300))


def test_a_file_whose_head_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(read_files, "open_regular", refuse)
    with pytest.raises(ValueError, match=r"a\.json: cannot be read \(Input/output error\): expected a readable file$"):
        find_layout(tmp_path)
