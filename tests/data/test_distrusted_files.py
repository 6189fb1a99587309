"""Annotation files, labels and images that are something else: refused in one line, and never waited for."""

import json
import os
import socket
import time

import numpy as np
import pytest
from PIL import Image

from headstart.data.check import doctor
from headstart.data.images import image_size, load_image
from headstart.data.label_maps import PixelLabels
from headstart.data.read import coco, detect_format, open_dataset, read_folders, read_voc, read_yolo
from headstart.data.read import files as read_files
from headstart.files import file_digest, open_regular, read_regular
from headstart.training.rows import read_rows

KINDS = {"folder": "is a folder", "pipe": "is a pipe", "socket": "is a socket", "device": "is a device"}


def make(path, kind):
    """Put something at a path that is no regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                one.bind(path.name)
            finally:
                os.chdir(here)
    return path


def refusal(call, *arguments):
    """The message of a ValueError of one line that takes less than two seconds of the processor."""
    since = time.process_time()
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert type(error.value) is not UnicodeDecodeError and time.process_time() - since < 2
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.isprintable(), message
    return message


def picture(path, width=8, height=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path


def voc(root, content=b"<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
        b"<ymax>4</ymax></bndbox></object></annotation>", stem="a"):  # fmt: skip
    picture(root / "JPEGImages" / f"{stem}.png")
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{stem}.xml").write_bytes(content)
    return root / "Annotations" / f"{stem}.xml"


def yolo(root, label=b"0 .5 .5 .5 .5"):
    picture(root / "images" / "a.png")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "a.txt").write_bytes(label)
    (root / "data.yaml").write_text("train: images\nnames: [ant]\n")
    return root / "data.yaml"


def coco_file(root, **changes):
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "ant"}],
    }
    path = root / "a.json"
    path.write_text(json.dumps(document | changes))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(tmp_path, kind):
    other = make(tmp_path / "other.jpg", kind)
    for call in (load_image, image_size, open_regular, file_digest, coco.read):
        assert KINDS[kind] in (message := refusal(call, other)) and message.startswith(f"{other}: ")
    xml = make(voc(tmp_path / "voc"), "pipe" if kind == "folder" else kind) if kind != "folder" else None
    if xml is not None:
        assert refusal(read_voc, tmp_path / "voc").startswith(f"{xml}: ")
    data = yolo(tmp_path / "yolo")
    label = make(tmp_path / "yolo" / "labels" / "a.txt", kind)
    assert refusal(read_yolo, data) == f"{label}: {KINDS[kind]}: expected a regular file"
    listed = make(tmp_path / "yolo" / "list.txt", kind if kind != "folder" else "pipe")
    data.write_text("train: list.txt\nnames: [ant]\n")
    assert refusal(read_yolo, data).startswith(f"{listed}: is a ")
    assert refusal(read_yolo, make(tmp_path / "other.yaml", kind)).startswith(f"{tmp_path / 'other.yaml'}: ")
    fifo = make(tmp_path / "classes" / "ant" / "a.jpg", kind)
    if kind != "folder":
        assert refusal(read_folders, tmp_path / "classes").startswith(f"{fifo}: not a readable image ({KINDS[kind]}")


def test_a_label_that_is_a_folder_is_no_image_without_objects(tmp_path):
    data = yolo(tmp_path)
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "labels" / "b.txt").mkdir()
    assert refusal(read_yolo, data) == f"{tmp_path / 'labels' / 'b.txt'}: is a folder: expected a regular file"


def test_an_xml_file_that_is_a_folder_is_named(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations" / "b.xml").mkdir()
    assert refusal(read_voc, tmp_path).startswith(f"{tmp_path / 'Annotations' / 'b.xml'}: ")


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "1,099,511,627,776 bytes" in refusal(load_image, path)
    assert "1,099,511,627,776 bytes" in refusal(coco.read, path)
    assert refusal(lambda: read_regular(path, most=5)) == f"{path}: has 1,099,511,627,776 bytes: expected at most 5"
    data = yolo(tmp_path)
    with (tmp_path / "labels" / "a.txt").open("wb") as file:
        file.truncate(read_files.MOST_TEXT + 1)
    assert "expected at most 67,108,864" in refusal(read_yolo, data)


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="needs /proc, which Linux has")
def test_a_file_that_holds_more_than_its_size_is_refused():
    assert refusal(lambda: read_regular("/proc/version", most=10)).startswith(
        "/proc/version: changed while it was read"
    )


def test_a_walk_through_what_is_no_data_set_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(read_files, "MOST_OTHERS", 20)
    picture(tmp_path / "z" / "a.png")
    for number in range(25):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x.bin").touch()
    for call in (read_folders, detect_format):
        assert "files and folders with only 0 images, not read further" in refusal(call, tmp_path).replace(
            "1 im", "0 im"
        )
    data = tmp_path / "z" / "data.yaml"
    data.write_text("train: ..\nnames: [ant]\n")
    assert "not read further" in refusal(read_yolo, data)
    monkeypatch.setattr(read_files, "MOST_ENTRIES", 3)
    for number in range(4):
        picture(tmp_path / "w" / "ant" / f"{number}.png")
    assert refusal(read_folders, tmp_path / "w").startswith(f"{tmp_path / 'w'}: 4 files and folders")


def test_walks_follow_no_link_to_a_folder(tmp_path):
    picture(tmp_path / "ant" / "a.png")
    (tmp_path / "ant" / "again").symlink_to(tmp_path)
    assert read_folders(tmp_path).file_names == ("ant/a.png",)


BINARY = b"\x00\xff\xfe\x89PNG"
MULTI_BYTE = b"<?xml version='1.0' encoding='%s'?><annotation/>"


@pytest.mark.parametrize("content", [
    BINARY, MULTI_BYTE % b"gbk", MULTI_BYTE % b"shift_jis", MULTI_BYTE % b"no-such", MULTI_BYTE % b"utf-32",
    b"<annotation>" * 100_000, b"<html/>", b"<annotation>&#xd800;</annotation>", b"",
])  # fmt: skip
def test_xml_of_any_bytes_is_refused_in_one_line(tmp_path, content):
    file = voc(tmp_path, content)
    assert refusal(read_voc, tmp_path).startswith(f"{file}: ")


def test_entities_that_grow_end_at_once(tmp_path):
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12))
    text = f"<!DOCTYPE a [<!ENTITY e0 'ha'>{entities}]><annotation><object><name>&e11;</name></object></annotation>"
    file = voc(tmp_path, text.encode())
    assert refusal(read_voc, tmp_path).startswith(f"{file}: line 1, column")


def test_long_numbers_in_xml_are_named(tmp_path):
    digits = b"9" * 5000
    file = voc(tmp_path, b"<annotation><size><width>%s</width><height>6</height></size></annotation>" % digits)
    assert refusal(lambda: read_voc(tmp_path, class_names=["a"])).startswith(f"{file}: size = ['6', '999999")
    file = voc(
        tmp_path, b"<annotation><object><name>a</name><bndbox><xmin>%s</xmin></bndbox></object></annotation>" % digits
    )
    assert refusal(read_voc, tmp_path).startswith(f"{file}: object 1: xmin = '99999999")


@pytest.mark.parametrize("start", [b"<annotation xmlns='http://example.org/voc'>", b"<v:annotation xmlns:v='urn:voc'>"])
def test_tags_with_a_namespace_are_read(tmp_path, start):
    prefix = b"v:" if b"v:" in start else b""
    tags = lambda name, *inner: b"<%s%s>%s</%s%s>" % (prefix, name, b"".join(inner), prefix, name)  # noqa: E731
    box = tags(b"bndbox", *(tags(name, b"%d" % n) for n, name in enumerate((b"xmin", b"ymin", b"xmax", b"ymax"), 1)))
    voc(tmp_path, start + tags(b"object", tags(b"name", b"cat"), box) + b"</" + prefix + b"annotation>")
    found = read_voc(tmp_path)
    assert found.class_names == ("cat",) and found.boxes.tolist() == [[0, 1, 3, 4]]


def test_a_picture_that_matches_twice_is_named(tmp_path):
    file = voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "a.jpg")
    assert refusal(read_voc, tmp_path) == (
        f"{file}: fits the pictures a.jpg and a.png: expected one, or its name in 'filename'"
    )
    file.write_bytes(file.read_bytes().replace(b"<annotation>", b"<annotation><filename>a.png</filename>"))
    assert read_voc(tmp_path).file_names == ("a.png",)


def test_labels_that_match_twice_are_named(tmp_path):
    data = yolo(tmp_path)
    picture(tmp_path / "images" / "a.jpg")
    labels = tmp_path / "labels" / "a.txt"
    assert refusal(read_yolo, data) == f"{labels}: fits the pictures a.jpg and a.png: expected one"
    (tmp_path / "images" / "a.jpg").unlink()
    beside = tmp_path / "images" / "a.txt"
    beside.touch()
    expected = f"{tmp_path / 'images' / 'a.png'}: has two label files, {labels} and {beside}: expected one"
    assert refusal(read_yolo, data) == expected


def test_a_label_map_that_matches_twice_is_named(tmp_path):
    images = [{"id": n, "file_name": name, "height": 6, "width": 8} for n, name in enumerate(("a.jpg", "a.png"))]
    data = coco.read(coco_file(tmp_path, images=images, annotations=[]))
    expected = f"{tmp_path / 'a.png'}: fits the pictures a.jpg and a.png: expected one"
    assert refusal(lambda: PixelLabels(data, tmp_path, ignore=())) == expected


@pytest.mark.parametrize("content", [BINARY, b"0 .5 .5 .5 .5\n\xe9t\xe9", "0 .5 .5 .5 .5".encode("utf-16")])
def test_binary_labels_and_lists_are_named_with_their_line(tmp_path, content):
    data = yolo(tmp_path, content)
    assert refusal(read_yolo, data).startswith(
        f"{tmp_path / 'labels' / 'a.txt'}: line {1 + content.startswith(b'0 .')}: "
    )
    listed = tmp_path / "list.txt"
    listed.write_bytes(content)
    data.write_text("train: list.txt\nnames: [ant]\n")
    assert refusal(read_yolo, data).startswith(f"{listed}: line ")
    data.write_bytes(content)
    assert refusal(read_yolo, data).startswith(f"{data}: ")
    voc(tmp_path / "voc")
    listed = tmp_path / "voc" / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_bytes(content)
    assert refusal(lambda: read_voc(tmp_path / "voc", "train")).startswith(f"{listed}: line ")


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
COLLIDING = "".join(f"  {n * (2**61 - 1)}: x\n" for n in range(1, 3000))
YAMLS = {
    "aliases": (ALIASES + "train: images\nnames: *a11\n", "line 2: alias 'a0': expected the value written out"),
    "merged": ("a: &a {x: 1}\nb: {<<: *a}\n", "line 2: alias 'a'"),
    "deep": ("names: " + "[" * 50_000, "line 1: nested more than 20 levels deep"),
    "long number": (f"names: [a]\nnc: {'9' * 5000}\n", "line 2: '99999999"),
    "base 60": ("nc: " + ":".join(["59"] * 100_000), "line 1: '59:59:"),
    "hashes": ("names:\n" + COLLIDING, "line 6: '11529215046068469755': expected a number of 64 bits"),
    "hashes of a set": ("names: !!set\n" + COLLIDING.replace(": x", ":"), "line 1: tag:yaml.org,2002:set: expected"),
    "twice": ("names: [a]\nnames: [b]\n", "line 2: 'names' is given twice: expected once"),
    "list as key": ("? [a]\n: b\n", "line 1: "),
    "date": ("a: 2001-99-99\n", "month must be in 1..12"),
    "tag": ("a: !!bool maybe\n", "'maybe'"),
    "foreign tag": ("a: !!python/object/apply:os.system [x]\n", "line 1: not valid YAML (could not determine a"),
    "NUL": ("train: \"a\\0b\"\nnames: [a]\n", "train = 'a\\x00b': no such folder or file"),
    "long path": (f"train: {'a' * 10_000}\nnames: [a]\n", "no such folder or file"),
    "surrogate": ("train: images\nnames: [\"\\ud800\"]\n", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_yaml_that_grows_or_deceives_is_refused(tmp_path, case):
    content, expected = YAMLS[case]
    data = yolo(tmp_path)
    data.write_text(content)
    message = refusal(read_yolo, data)
    assert message.startswith(f"{data}: ") and expected in message


def test_a_listed_picture_that_is_absent_is_named_with_its_line(tmp_path):
    data = yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/a.png\n\nimages/b.png\n")
    data.write_text("train: list.txt\nnames: [ant]\n")
    assert refusal(read_yolo, data) == f"{tmp_path / 'list.txt'}: line 3: 'images/b.png': no such file"


def test_an_undecodable_name_is_refused(tmp_path):
    """It could not be written into rows, reports and predictions."""
    data = yolo(tmp_path)
    name = os.fsdecode(b"caf\xe9.png")
    try:
        picture(tmp_path / "images" / name)
    except (OSError, ValueError):
        pytest.skip("needs a file system that takes any bytes as names, as those of Linux do")
    assert "file_name = 'caf\\udce9.png': expected text that UTF-8 can hold" in refusal(read_yolo, data)


JSON_TEXTS = {
    "digits": ('"id": 1', '"id": ' + "9" * 5000),
    "digits beside NaN": ('"area": 4', '"x": NaN, "area": ' + "9" * 5000),
    "more digits beside NaN": ('"bbox": [1', '"x": NaN, "bbox": [' + "9" * 400),
    "digits in runs": ('"iscrowd": 0', '"segmentation": {"size": [6, 8], "counts": [' + "9" * 400 + "]}"),
    "digits in runs beside NaN": (
        '"iscrowd": 0', '"x": NaN, "segmentation": {"size": [6, 8], "counts": [' + "9" * 99 + "]}"
    ),
    "exponent": ('"area": 4', '"area": 1e400'),
    "surrogate": ('"ant"', '"\\ud800"'),
    "surrogate beside NaN": ('"ant"', '"\\ud800", "x": NaN'),
    "surrogate in a file name": ('"a.png"', '"\\udc00.png", "x": NaN'),
    "deep": ('"area": 4', '"area": ' + "[" * 1000 + "]" * 1000),
    "deeper": ('"area": 4', '"area": ' + "[" * 100_000 + "]" * 100_000),
    "deeper beside NaN": ('"area": 4', '"x": NaN, "area": ' + "[" * 100_000 + "]" * 100_000),
    "deep and skipped beside NaN": ('"area": 4', '"x": NaN, "y": ' + "[" * 100_000 + "]" * 100_000),
    "no name": ('"a.png"', '"."'),
    "long name": ('"a.png"', '"' + "a" * 10_000 + '", "x": '),
}  # fmt: skip


@pytest.mark.parametrize("case", JSON_TEXTS)
def test_json_of_any_values_is_refused_in_one_line(tmp_path, case):
    path = coco_file(tmp_path)
    old, new = JSON_TEXTS[case]
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    assert refusal(coco.read, path).startswith(f"{path}: ")
    assert [problem.code for problem in doctor.check({"train": path}).of("error")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_json_in_another_encoding_is_refused(tmp_path, encoding):
    path = coco_file(tmp_path)
    path.write_bytes(path.read_text().replace("ant", "é").encode(encoding))
    assert refusal(coco.read, path).startswith(f"{path}: ")


def test_a_long_file_name_is_no_traceback(tmp_path):
    images = [{"id": 1, "file_name": "a" * 5000 + ".png", "height": 6, "width": 8}]
    data = coco.read(coco_file(tmp_path, images=images))
    assert "File name too long" in refusal(lambda: data.load_image(0))
    assert [problem.code for problem in doctor.check({"train": data}).of("error")] == ["image-missing"]


REPEATED = {
    "list": ('"categories"', '"categories": [], "categories"', "'categories' is given 2 times"),
    "box": ('"bbox"', '"bbox": [0, 0, 1, 1], "bbox"', "the object with id 1: 'bbox' is given 2 times"),
    "box of another kind": ('"bbox"', '"bbox": "x", "bbox"', "the object with id 1: 'bbox' is given 2 times"),
    "id": ('"file_name"', '"id": 1, "file_name"', "the object with id 1: 'id' is given 2 times"),
    "optional": ('"iscrowd"', '"iscrowd": null, "iscrowd"', "'iscrowd' is given 2 times"),
    "beside NaN": ('"bbox"', '"x": NaN, "bbox": [0, 0, 1, 1], "bbox"', "'bbox' is given 2 times"),
    "beside a licence": (
        '"images"', '"licenses": [{"id": 1, "name": "x"}], "images": [], "images"', "'images' is given 2 times"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REPEATED)
def test_keys_given_twice_are_refused(tmp_path, case):
    path = coco_file(tmp_path)
    old, new, expected = REPEATED[case]
    path.write_text(path.read_text().replace(old, new, 1))
    message = refusal(coco.read, path)
    assert message.startswith(f"{path}: ") and expected in message and message.endswith(": expected once")


@pytest.mark.parametrize("extra", [
    {"licenses": [{"id": 1, "name": "x", "url": "x"}], "info": {"name": "\"bbox\""}},
    {"images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8, "extra": {"name": "x", "id": {"id": 2}}}]},
])  # fmt: skip
def test_keys_of_the_same_name_elsewhere_are_no_repetition(tmp_path, extra):
    assert coco.read(coco_file(tmp_path, **extra)).num_annotations == 1


def test_long_class_names_take_no_memory_of_their_square(tmp_path):
    names = ["a" * 1_000_000, *(f"c{n}" for n in range(20_000))]  # NumPy's texts would take 80 GB
    data = coco.read(coco_file(tmp_path, categories=[{"id": n, "name": name} for n, name in enumerate(names)]))
    assert data.num_classes == 20_001


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "folders"])
def test_what_is_sound_is_read_as_before(tmp_path, kind):
    if kind == "coco":
        coco_file(tmp_path)
    elif kind == "voc":
        voc(tmp_path)
    elif kind == "yolo":
        yolo(tmp_path, b"\xef\xbb\xbf0 .5 .5 .5 .5")  # with a byte order mark, as Notepad writes it
    else:
        for place in ("ant/a.png", "bee/b.png"):
            picture(tmp_path / place)
    data = open_dataset(tmp_path)
    assert {data.num_images, data.num_annotations, data.num_classes} == {2 if kind == "folders" else 1}
    assert np.isfinite(data.boxes).all()


def test_half_a_pair_as_a_key_of_a_record_is_one_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"\\ud800": NaN}], "annotations": [], "categories": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}: the name of a field holds half a surrogate pair, expected text$"):
        coco.read(path)


def test_an_unknown_field_before_wrong_bytes_names_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"kind": "start", "step": 0, "checkpkint": 1, "a": "\xd7"}\n{}\n{}\n')
    with pytest.raises(ValueError, match=rf"^{path}: line 1: "):
        read_rows(path)
