"""Layouts of data sets in the wild: each is found by the content of its files, whatever lies beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data import read as formats
from headstart.data.check import doctor
from headstart.data.read.layout import find_layout, top_keys

BOX = (4.0, 6.0, 20.0, 16.0)  # x1, y1, x2, y2 of the only object of each picture, 40 x 30 px
TRAIN, VAL = ("a", "b", "c"), ("d",)
# A conda environment, whose tag PyYAML refuses; and files of the same suffixes as annotations.
STRAY = {
    "environment.yml": "name: x\ndependencies: !!python/tuple [python=3.9]\n",
    "docker-compose.yaml": "services: {web: {image: x}}\n",
    "package.json": '{"name": "x", "images": 3}',
    "settings.json": "[1, 2",
    "pom.xml": "<project/>",
    ".idea/workspace.xml": "<project/>",
    "results.csv": "epoch,loss\n1,0.5\n",
    "README.dataset.txt": "made by hand\n",
    "preview/a.png": None,
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (len(path.stem), 90, 30)).save(path)
    return path


def label(stem: str) -> str:
    return "cat" if stem == "a" else "dog"


def coco_text(stems) -> str:
    x1, y1, x2, y2 = BOX
    entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 160, "iscrowd": 0}
    return json.dumps(
        {
            "info": {"licenses": []},
            "images": [{"id": i, "file_name": f"{s}.png", "height": 30, "width": 40} for i, s in enumerate(stems)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + (label(s) == "dog"), **entry} for i, s in enumerate(stems)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
    )


def voc_text(stem: str) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (BOX[0] + 1, BOX[1] + 1, BOX[2], BOX[3]))
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    size = "<size><width>40</width><height>30</height></size>"
    inside = f"<object><name>{label(stem)}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation><folder>images</folder><filename>{stem}.png</filename>{size}{inside}</annotation>"


def yolo_text(stem: str) -> str:
    x1, y1, x2, y2 = BOX
    return f"{int(label(stem) == 'dog')} {(x1 + x2) / 80} {(y1 + y2) / 60} {(x2 - x1) / 40} {(y2 - y1) / 30}\n"


def labelme_text(stem: str, image: str) -> str:
    shape = {"label": label(stem), "points": [BOX[:2], BOX[2:]], "shape_type": "rectangle", "group_id": None}
    found = {"version": "5", "flags": {}, "shapes": [shape], "imagePath": image, "imageData": None}
    return json.dumps(found | {"imageHeight": 30, "imageWidth": 40})


def voc_lower_case(root):
    for stem in TRAIN + VAL:
        write(root / "annotations" / f"{stem}.xml", voc_text(stem))
        picture(root / "images" / f"{stem}.png")


def voc_beside(root):
    for stem in TRAIN + VAL:
        write(root / f"{stem}.xml", voc_text(stem))
        picture(root / f"{stem}.png")


def voc_usual(root):
    for stem in TRAIN + VAL:
        write(root / "Annotations" / f"{stem}.xml", voc_text(stem))
        picture(root / "JPEGImages" / f"{stem}.png")
        picture(root / "SegmentationClass" / "deep" / f"{stem}.png")
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems))


def voc_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        for stem in stems:
            write(root / name / f"{stem}.xml", voc_text(stem))
            picture(root / name / f"{stem}.png")


def voc_by_split(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            write(root / "annotations" / name / f"{stem}.xml", voc_text(stem))
            picture(root / "images" / name / f"{stem}.png")


def coco_usual(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / "annotations" / f"instances_{name}2017.json", coco_text(stems))
        write(root / "annotations" / f"captions_{name}2017.json", '{"images": [], "annotations": []}')
        for stem in stems:
            picture(root / f"{name}2017" / f"{stem}.png")


def coco_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        write(root / name / "_annotations.coco.json", coco_text(stems))
        for stem in stems:
            picture(root / name / f"{stem}.png")


def coco_cvat(root):
    write(root / "annotations" / "instances_default.json", coco_text(TRAIN + VAL))
    for stem in TRAIN + VAL:
        picture(root / "images" / "default" / f"{stem}.png")


def coco_flat(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / f"{name}.json", coco_text(stems))
        for stem in stems:
            picture(root / name / f"{stem}.png")


def yolo_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        for stem in stems:
            write(root / name / "labels" / f"{stem}.txt", yolo_text(stem))
            picture(root / name / "images" / f"{stem}.png")
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def yolo_ultralytics(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            write(root / "labels" / name / f"{stem}.txt", yolo_text(stem))
            picture(root / "images" / name / f"{stem}.png")
    write(root / "set.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")


def yolo_label_studio(root):
    for stem in TRAIN + VAL:
        write(root / "labels" / f"{stem}.txt", yolo_text(stem))
        picture(root / "images" / f"{stem}.png")
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", '{"categories": [], "info": {}}')


def yolo_cvat(root):
    for stem in TRAIN + VAL:
        write(root / "obj_train_data" / f"{stem}.txt", yolo_text(stem))
        picture(root / "obj_train_data" / f"{stem}.png")
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\n")


def labelme_beside(root):
    for stem in TRAIN + VAL:
        write(root / f"{stem}.json", labelme_text(stem, f"{stem}.png"))
        picture(root / f"{stem}.png")


def labelme_apart(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            write(root / "json" / name / f"{stem}.json", labelme_text(stem, f"..\\..\\images\\{name}\\{stem}.png"))
            picture(root / "images" / name / f"{stem}.png")


def csv_tensorflow(root):
    for name, stems in (("train", TRAIN), ("test", VAL)):
        rows = [f"{s}.png,40,30,{label(s)},{','.join(f'{v:g}' for v in BOX)}" for s in stems]
        write(root / f"{name}_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "\n".join(rows))
        for stem in stems:
            picture(root / "images" / f"{stem}.png")


def csv_retinanet(root):
    rows = [f"images/{s}.png,{','.join(f'{v:g}' for v in BOX)},{label(s)}" for s in TRAIN + VAL]
    write(root / "annotations.csv", "\n".join(rows))
    for stem in TRAIN + VAL:
        picture(root / "images" / f"{stem}.png")


LAYOUTS = {
    voc_lower_case: ("voc", ()),
    voc_beside: ("voc", ()),
    voc_usual: ("voc", ("train", "val")),
    voc_roboflow: ("voc", ("train", "val")),
    voc_by_split: ("voc", ("train", "val")),
    coco_usual: ("coco", ("train", "val")),
    coco_roboflow: ("coco", ("train", "val")),
    coco_cvat: ("coco", ()),
    coco_flat: ("coco", ("train", "val")),
    yolo_roboflow: ("yolo", ("train", "val")),
    yolo_ultralytics: ("yolo", ("train", "val")),
    yolo_label_studio: ("yolo", ()),
    yolo_cvat: ("yolo", ()),
    labelme_beside: ("labelme", ()),
    labelme_apart: ("labelme", ("train", "val")),
    csv_tensorflow: ("csv", ("train", "test")),
    csv_retinanet: ("csv", ()),
}


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
        assert "preview" not in str(data.image_path(0))
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


def test_pictures_elsewhere_than_annotations(tmp_path):
    voc_lower_case(tmp_path)
    data = formats.open_dataset(tmp_path / "annotations", tmp_path / "images")
    assert data.file_names == ("a.png", "b.png", "c.png", "d.png") and data.image_dir == tmp_path / "images"


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


def test_class_folders_with_splits(tmp_path):
    for name in ("train/cat/a", "train/dog/b", "valid/cat/c", "valid/dog/d"):
        picture(tmp_path / f"{name}.png")
    layout = find_layout(tmp_path)
    assert (layout.kind, layout.splits) == ("folders", ("train", "val"))
    assert formats.open_dataset(tmp_path, split="val").file_names == ("cat/c.png", "dog/d.png")
    assert formats.open_folders(f"{tmp_path}:valid").num_images == 2
    with pytest.raises(ValueError, match=r"split = None: expected one of \['train', 'valid'\]"):
        formats.open_dataset(tmp_path)


def test_a_split_that_is_not_there_is_named(tmp_path):
    for make in (voc_roboflow, labelme_apart, csv_tensorflow, yolo_ultralytics, coco_flat):
        make(tmp_path / make.__name__)
        with pytest.raises(ValueError, match=r"split = 'dev'"):
            formats.open_dataset(tmp_path / make.__name__, split="dev")


def test_labelme_shapes(tmp_path):
    picture(tmp_path / "a.png")
    triangle = {"label": "cat", "points": [[0, 0], [10, 0], [0, 10]], "shape_type": "polygon", "group_id": 7}
    other = triangle | {"points": [[20, 0], [30, 0], [20, 10]]}
    line = {"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "line"}
    file = write(tmp_path / "a.json", json.dumps({"shapes": [triangle, line, other], "imagePath": "a.png"}))
    data = formats.open_dataset(tmp_path)
    assert data.boxes.tolist() == [[0, 0, 30, 10]] and len(data.polygons(0)) == 2 and data.areas.tolist() == [100]
    assert data.notes[-1] == "1 shapes left out that are neither polygon nor rectangle"
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


def test_keys_of_the_outermost_object_only(tmp_path):
    text = '{"a": {"images": [{"b": 1}]}, "c\\"d": "annotations", "e": [1, "f"], "g": '
    assert top_keys(write(tmp_path / "x.json", text)) == {
        "a": False, 'c\\"d': False, "e": True, "g": False
    }  # fmt: skip
    assert top_keys(write(tmp_path / "y.json", '[{"images": 1}]')) == {}
