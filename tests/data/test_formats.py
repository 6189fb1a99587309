"""VOC, YOLO and class folders become the Dataset that the same content as COCO JSON would be."""

import numpy as np
import pytest
from PIL import Image

from headstart.data import read as formats
from headstart.data.dataset import fingerprint
from headstart.data.read import coco
from headstart.data.read.layout import find_layout


def image(path, width=40, height=30, exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **({"exif": exif} if exif else {}))
    return path


def voc_object(name, corners, extra=""):
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def voc_file(root, stem, *objects, size="<size><width>40</width><height>30</height><depth>3</depth></size>"):
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{stem}.png</filename>{size}{''.join(objects)}</annotation>")
    return path


@pytest.fixture
def voc(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    voc_file(tmp_path, "b", voc_object("dog", (1, 1, 40, 30), part), voc_object("cat", (3, 4, 3, 9)))
    voc_file(tmp_path, "a", voc_object("cat", (5, 6, 10.5, 20), "<difficult>1</difficult>"))
    voc_file(tmp_path, "c", size="")
    image(tmp_path / "JPEGImages" / "a.jpg")
    image(tmp_path / "JPEGImages" / "c.png", 25, 15)
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("b\na\n")
    (main / "dog_val.txt").write_text("c -1\n\na  1\n")
    return tmp_path


def test_voc(voc):
    d = formats.read_voc(voc)
    assert d.file_names == ("a.jpg", "b.png", "c.png") and d.image_dir == voc / "JPEGImages"
    assert d.image_ids.tolist() == [1, 2, 3] and d.first.tolist() == [0, 1, 2, 2]
    assert d.heights.tolist() == [30, 30, 15] and d.widths.tolist() == [40, 40, 25]
    assert d.class_names == ("cat", "dog") and d.category_ids.tolist() == [1, 2] and d.labels.tolist() == [0, 1]
    assert d.boxes.tolist() == [[4, 5, 10.5, 20], [0, 0, 40, 30]]  # a box over the whole image covers all of it
    assert d.areas.tolist() == [6.5 * 15, 1200] and d.difficult.tolist() == [True, False]
    assert d.notes == ("1 boxes without width or height left out: b.xml object 2 (cat, [3.0, 4.0, 3.0, 9.0])",)


def test_voc_splits_share_classes_and_ids(voc):
    whole, train, val = formats.read_voc(voc), formats.read_voc(voc, "train"), formats.read_voc(voc, "dog_val")
    assert train.image_ids.tolist() == [1, 2] and val.image_ids.tolist() == [1, 3]
    assert train.class_names == val.class_names == whole.class_names
    assert val.annotation_ids.tolist() == [1] and val.notes == ()
    assert fingerprint(train) == fingerprint(whole.take([0, 1]))


def test_voc_splits_of_a_folder_in_a_folder(voc, tmp_path_factory):
    """VOCdevkit/VOC2012: the lists are those of the only folder there."""
    root = tmp_path_factory.mktemp("kit")
    (root / "__MACOSX").mkdir()
    voc.rename(root / "VOC2012")
    assert tuple(formats.splits_of(find_layout(root))) == ("train", "dog_val")
    assert formats.open_dataset(root, split="train").file_names == ("a.jpg", "b.png")


def test_voc_class_names_may_be_given(voc):
    d = formats.read_voc(voc, class_names=["dog", "bird", "cat"])
    assert d.class_names == ("dog", "bird", "cat") and d.labels.tolist() == [2, 0]
    with pytest.raises(
        ValueError, match=r"a\.xml: object 1: name = 'cat': expected one of \['dog', 'cats'\] \(nearest"
    ):
        formats.read_voc(voc, class_names=["dog", "cats"])


def test_voc_box_from_pixel_0_is_noted(voc):
    voc_file(voc, "a", voc_object("cat", (0, 6, 10, 20)))
    d = formats.read_voc(voc)
    assert d.boxes[0].tolist() == [-1, 5, 10, 20]
    assert d.notes[1] == "1 boxes with a corner below VOC's first pixel 1 kept as written: a.xml object 1"


def test_voc_becomes_coco_json(voc):
    d = formats.read_voc(voc)
    coco.write(d, voc / "made.json")
    assert fingerprint(coco.read(voc / "made.json", d.image_dir)) == fingerprint(d)


VOC_BAD = {
    "xmin text": (voc_object("cat", ("x", 1, 2, 3)), r"a\.xml: object 1: xmin = 'x': expected a pixel coordinate"),
    "ymax nan": (voc_object("cat", (1, 1, 2, "nan")), r"a\.xml: object 1: ymax = 'nan': expected a pixel coordinate"),
    "no name": (voc_object("", (1, 1, 2, 3)), r"a\.xml: object 1: field 'name' is missing"),
    "no box": ("<object><name>cat</name></object>", r"a\.xml: object 1: field 'bndbox/xmin' is missing"),
    "difficult": (
        voc_object("cat", (1, 1, 2, 3), "<difficult>maybe</difficult>"),
        r"a\.xml: object 1: difficult = 'maybe': expected 0 or 1",
    ),
    "not XML": ("<object>", r"a\.xml: line 1, column \d+: not valid XML \(mismatched tag"),
}


@pytest.mark.parametrize("case", VOC_BAD)
def test_wrong_voc_is_named(voc, case):
    content, expected = VOC_BAD[case]
    voc_file(voc, "a", content)
    with pytest.raises(ValueError, match=expected):
        formats.read_voc(voc)


def test_wrong_voc_folders_are_named(voc, tmp_path_factory):
    with pytest.raises(
        ValueError, match=r"split = 'trian': expected one of \['dog_val', 'train'\] \(nearest: 'train'\)"
    ):
        formats.read_voc(voc, "trian")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\n../../b\n")
    with pytest.raises(ValueError, match=r"train\.txt: line 2: image '\.\./\.\./b': expected a file Annotations"):
        formats.read_voc(voc, "train")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt: no image"):
        formats.read_voc(voc, "train")
    with pytest.raises(ValueError, match=r"no Annotations/\*\.xml"):
        formats.read_voc(tmp_path_factory.mktemp("empty"))
    voc_file(voc, "a", size="<size><width>-4</width><height>3</height></size>")
    with pytest.raises(ValueError, match=r"a\.xml: size = \['3', '-4'\]: expected height and width"):
        formats.read_voc(voc)
    path = voc_file(voc, "d")
    path.write_text(path.read_text().replace("d.png", "../d.png"))
    voc_file(voc, "a")
    with pytest.raises(ValueError, match=r"file_name = '\.\./d\.png': expected a path that stays inside"):
        formats.read_voc(voc)


def test_voc_in_deeper_folders_and_lists_as_tools_write_them(tmp_path):
    """CVAT's lists: folders, spaces and quotes in names, capitals; two pictures of one name are told apart."""
    for place, width in {"a/x/0": 40, "b/x/0": 44, "my own 1": 48}.items():
        image(tmp_path / "JPEGImages" / f"{place}.png", width)
        voc_file(tmp_path, place, voc_object("cat", (1, 1, width, 9)), size="")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "Train.txt").write_text("a/x/0\nb/x/0.png\n")
    (main / "Validation.txt").write_text('"my own 1"\r\n')
    (main / "cat_Train.txt").write_text("my own 1  1\n")
    whole, train, val = formats.read_voc(tmp_path), *(formats.read_voc(tmp_path, s) for s in ("train", "Validation"))
    assert whole.file_names == ("a/x/0.png", "b/x/0.png", "my own 1.png")
    assert whole.boxes[:, 2].tolist() == whole.widths.tolist() == [40, 44, 48]
    assert train.file_names == ("a/x/0.png", "b/x/0.png") and val.file_names == ("my own 1.png",)
    assert tuple(formats.splits_of(find_layout(tmp_path))) == ("train", "val", "cat_Train")
    assert formats.read_voc(tmp_path, "cat_Train").file_names == val.file_names
    (main / "Train.txt").write_text("0\n")
    with pytest.raises(ValueError, match=r"Train\.txt: line 1: image '0': fits .*a/x/0\.xml and .*b/x/0\.xml"):
        formats.read_voc(tmp_path, "train")


@pytest.fixture
def yolo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright: 30 wide, 40 high
    image(tmp_path / "images" / "train" / "a.png")
    image(tmp_path / "images" / "train" / "deep" / "b.png", exif=exif)
    image(tmp_path / "images" / "train" / "c.png")
    image(tmp_path / "images" / "val" / "v.png")
    rows = {
        "train/a": "0 0.5 0.5 0.5 0.2\n\n2 0 0 1 0 1 1 0.5 0.5\n",
        "train/deep/b": "2 0.5 0.5 1 1\n0 .5 .5 0 .1",
        "val/v": "",
    }
    for name, text in rows.items():
        path = tmp_path / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path = tmp_path / "data.yaml"
    path.write_text("path: .\ntrain: images/train\nval: [images/val]\nnames: {0: ant, 2: bee}\n")
    return path


def test_yolo(yolo):
    d = formats.read_yolo(yolo)
    assert d.file_names == ("a.png", "c.png", "deep/b.png") and d.image_dir == yolo.parent / "images" / "train"
    assert d.class_names == ("ant", "bee") and d.category_ids.tolist() == [0, 2] and d.labels.tolist() == [0, 1, 1]
    assert d.first.tolist() == [0, 2, 2, 3] and d.heights.tolist() == [30, 30, 40] and d.widths.tolist() == [40, 40, 30]
    np.testing.assert_allclose(d.boxes, [[10, 12, 30, 18], [0, 0, 40, 30], [0, 0, 30, 40]])
    assert d.segment_kind.tolist() == [0, 1, 0]
    np.testing.assert_allclose(d.polygons(1)[0], [[0, 0], [40, 0], [40, 30], [20, 15]])
    np.testing.assert_allclose(d.areas, [120, 600, 1200])
    assert d.notes == (
        "1 images without a label file taken as images without objects",
        "1 boxes without width or height left out: b.txt line 2",
    )
    assert all(d.image_path(i).is_file() for i in range(3))
    val = formats.read_yolo(yolo, "val")
    assert val.num_annotations == 0 and val.num_images == 1 and val.class_names == d.class_names


def test_yolo_from_a_list_of_files_and_a_path_one_level_wrong(yolo):
    base = yolo.parent
    (base / "train.txt").write_text("./images/train/a.png\nimages/train/deep/b.png\n")
    yolo.write_text("train: train.txt\nval: ../images/val\nnames: [ant, x, bee]\nnc: 3\n")
    assert formats.read_yolo(yolo).file_names == ("a.png", "deep/b.png")
    assert formats.read_yolo(yolo, "val").file_names == ("v.png",)


YOLO_ROWS = {
    "0 0.5 0.5 0.5": r"a\.txt: line 2: 3 numbers after the class: expected 4 \(a box\) or an even number of 6",
    "0 0.5 0.5 0.5 0.1 0.1": r"line 2: 5 numbers after the class",
    "0 0.5 x 0.5 0.1": r"line 2: '0 0\.5 x 0\.5 0\.1': expected numbers only",
    "1 0.5 0.5 0.5 0.1": r"line 2: class = 1: expected one of 0 to 2, as names lists",
    "0.5 0.5 0.5 0.5 0.1": r"line 2: class = 0\.5: expected one of",
    "0 20 15 10 5": r"line 2: coordinate = 20: expected a fraction of the image, 0 to 1",
    "0 0.5 nan 0.5 0.1": r"line 2: coordinate = nan: expected a fraction",
    "0 0.5 0.5 -0.5 0.1": r"line 2: coordinate = -0\.5: expected a fraction",
}


@pytest.mark.parametrize("row", YOLO_ROWS)
def test_wrong_yolo_rows_are_named(yolo, row):
    (yolo.parent / "labels" / "train" / "a.txt").write_text(f"0 0.5 0.5 0.5 0.2\n{row}\n")
    with pytest.raises(ValueError, match=YOLO_ROWS[row]):
        formats.read_yolo(yolo)


YOLO_YAMLS = {
    "names: [a": r"data\.yaml: line \d: not valid YAML",
    "train: images/train": r"data\.yaml: names = None: expected a list of class names",
    "names: [a, no]": r"names: 1 = False: expected text \(put it in quotes\)",
    "names: [a, b]\nnc: 3": r"nc = 3: expected 2, the number of names",
    "names: [a]\nval: x": r"split = 'train': expected one of \['val'\]",
    "names: [a]\ntrain: nowhere": r"train = 'nowhere': no such folder or file: looked at .*nowhere",
    "names: [a]\ntrain: labels": r"train = 'labels': no image there",
    "just text": r"data\.yaml: 'just text': expected fields names, train, val",
}


@pytest.mark.parametrize("text", YOLO_YAMLS)
def test_wrong_data_yaml_is_named(yolo, text):
    yolo.write_text(text)
    with pytest.raises(ValueError, match=YOLO_YAMLS[text]):
        formats.read_yolo(yolo)


def test_yolo_without_any_label_is_a_mistake_not_a_set_of_negatives(yolo):
    (yolo.parent / "labels").rename(yolo.parent / "label")
    with pytest.raises(ValueError, match=r"train: none of 3 images has a label file: expected .*labels.train.a\.txt"):
        formats.read_yolo(yolo)
    with pytest.raises(ValueError, match=r"cannot be read"):
        formats.read_yolo(yolo.parent / "other.yaml")


def test_yolo_keypoints_are_no_polygon(yolo):
    """Rows of Ultralytics' pose: of two points with 3 numbers they have as many numbers as a polygon of 5 points."""
    yolo.write_text(yolo.read_text() + "kpt_shape: [2, 3]\n")
    for name in ("a", "deep/b"):
        label = yolo.parent / "labels" / "train" / f"{name}.txt"
        label.write_text("0 0.5 0.5 0.5 0.2 0.4 0.5 2 0 0 0\n")
    d = formats.read_yolo(yolo)
    assert d.segment_kind.tolist() == [0, 0] and d.keypoints is None
    np.testing.assert_allclose(d.boxes, [[10, 12, 30, 18], [7.5, 16, 22.5, 24]])
    assert d.notes[1] == "keypoints left out: read from COCO JSON only"
    label.write_text("0 0 0 1 0 1 1\n")
    with pytest.raises(ValueError, match=r"6 numbers after the class: expected 4 \(a box\) or 10 \(with keypoints"):
        formats.read_yolo(yolo)
    yolo.write_text(yolo.read_text().replace("[2, 3]", "[-2, 3]"))
    with pytest.raises(
        ValueError, match=r"kpt_shape = \[-2, 3\]: expected the number of keypoints, and 2 or 3 numbers each"
    ):
        formats.read_yolo(yolo)


def test_yolo_without_pictures_does_not_read_the_folder_above(yolo):
    """Label Studio exports YOLO without pictures, too: those of a data set beside it are not its own."""
    alone = yolo.parent / "export" / "classes.txt"
    alone.parent.mkdir()
    alone.write_text("ant\n")
    with pytest.raises(ValueError, match=r"export.classes\.txt: train = '\.': no image there: expected files \.jpg"):
        formats.read_yolo(alone)
    (yolo.parent / "labels" / "classes.txt").write_text("ant\nx\nbee\n")
    assert formats.read_yolo(yolo.parent / "labels" / "classes.txt").num_annotations == 3


def test_class_folders(tmp_path):
    for name in ("train/dog/1.png", "train/cat/x/2.jpg", "train/cat/1.png", "train/stray.png", "val/cat/1.png"):
        image(tmp_path / name)
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    d = formats.open_dataset(tmp_path, split="train")
    assert d.file_names == ("cat/1.png", "cat/x/2.jpg", "dog/1.png") and d.class_names == ("cat", "dog")
    assert d.labels.tolist() == [0, 0, 1] and d.boxes.tolist() == [[0, 0, 40, 30]] * 3
    assert d.notes[0].startswith("2 files left out")
    with pytest.raises(ValueError, match="no images in class folders"):
        formats.read_folders(tmp_path / "train" / "dog")


def test_formats_are_told_apart_and_opened(voc, yolo, tmp_path_factory):
    shared = voc  # both fixtures fill one folder: VOC's names decide
    assert formats.detect_format(shared) == "voc" and formats.detect_format(yolo) == "yolo"
    assert formats.open_dataset(shared, split="train").num_images == 2
    assert formats.open_dataset(yolo).num_images == 3 and formats.open_dataset(yolo, split="val").num_images == 1
    d = formats.read_voc(voc)
    folder = tmp_path_factory.mktemp("coco")
    for part in ("train", "val"):
        coco.write(d, folder / "annotations" / f"instances_{part}.json")
    assert formats.detect_format(folder) == formats.detect_format(folder / "annotations") == "coco"
    assert formats.open_dataset(folder, voc / "JPEGImages", "val").path.endswith("instances_val.json")
    expected = r"no split fits 2 files: expected one of \['annotations/instances_train\.json', 'annotations"
    with pytest.raises(ValueError, match=expected):
        formats.open_dataset(folder)
    with pytest.raises(ValueError, match="split = 'val': expected none"):
        formats.open_dataset(folder / "annotations" / "instances_val.json", split="val")
    with pytest.raises(
        ValueError, match="image_dir = 'x': expected only with COCO JSON, VOC, labelme or CSV, not with yolo"
    ):
        formats.open_dataset(yolo, "x")


def test_no_known_format_says_what_is_known(tmp_path):
    with pytest.raises(ValueError, match=r"no known format: expected a COCO \.json file, a VOC folder"):
        formats.detect_format(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        formats.open_dataset(tmp_path / "none")


@pytest.mark.real_data
def test_real_voc(real_data):
    d = formats.open_dataset(real_data / "bccd")
    assert (d.num_images, d.num_annotations, d.class_names) == (364, 4886, ("Platelets", "RBC", "WBC"))
    assert len(d.notes) == 1 and d.notes[0].startswith("2 boxes without width or height left out: BloodImage_00338.xml")
    sizes = [formats.read_voc(real_data / "bccd", split).num_images for split in ("train", "val", "test")]
    assert sizes == [205, 87, 72] and d.load_image(0).shape == (480, 640, 3)


@pytest.mark.real_data
def test_real_class_folders(real_data):
    d = formats.open_dataset(real_data / "cats_dogs", split="val")
    assert d.class_names == ("cat", "dog") and d.num_images == d.num_annotations == 399
