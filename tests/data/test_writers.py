"""What is written in another format, renamed or merged is read back as the same data set."""

import json
from dataclasses import replace

import numpy as np
import pytest

import layouts
from cli_call import call
from headstart.data.classes import merge, rename_classes
from headstart.data.dataset import fingerprint
from headstart.data.read import coco, open_dataset
from headstart.data.write import open_splits, write_voc, write_yolo


def same(one, other):
    """True for data sets with the same content; their places differ."""
    return fingerprint(one) == fingerprint(other)


@pytest.fixture
def scenes(data_root):
    return open_dataset(data_root / "scenes" / "train.json")


def test_voc_round_trip(tmp_path):
    layouts.voc_usual(tmp_path / "a")
    text = layouts.voc_text("b").replace("<xmin>5.0<", "<xmin>1.1<").replace("<ymax>16.0<", "<ymax>17.123456<")
    layouts.write(tmp_path / "a" / "Annotations" / "b.xml", text.replace("</name>", "</name><difficult>1</difficult>"))
    splits = open_splits(str(tmp_path / "a"), None, None)
    assert set(splits) == {"train", "val"} and write_voc(splits, tmp_path / "b") == []
    for split in (None, "train", "val"):
        assert same(open_dataset(tmp_path / "a", None, split), open_dataset(tmp_path / "b", None, split))
    assert "<xmin>1.1</xmin>" in (tmp_path / "b" / "Annotations" / "b.xml").read_text()
    pictures = [(root / "JPEGImages" / "a.png").read_bytes() for root in (tmp_path / "a", tmp_path / "b")]
    assert pictures[0] == pictures[1]


def test_yolo_round_trip(tmp_path):
    random = np.random.default_rng(0)
    for split, stems in (("train", "abc"), ("val", "d")):
        for stem in stems:
            layouts.picture(tmp_path / "a" / "images" / split / "deep" / f"{stem}.png")
            boxes = random.uniform(0.2, 0.4, (20, 4)).round(6)
            polygon = " ".join(f"{value:.5g}" for value in random.uniform(0, 1, 10))
            rows = [f"1 {' '.join(map(str, box))}" for box in boxes.tolist()]
            text = "\n".join([*rows, f"0 {polygon}"])
            layouts.write(tmp_path / "a" / "labels" / split / "deep" / f"{stem}.txt", text)
    names = "train: images/train\nval: images/val\nnames: [a thing, 'no: [1]']\n"
    layouts.write(tmp_path / "a" / "data.yaml", names)
    splits = open_splits(str(tmp_path / "a"), None, None)
    notes = write_yolo(splits, tmp_path / "b")
    assert [note.split(":")[0] for note in notes] == ["train", "val"] and "tightest" in notes[0]
    for split in ("train", "val"):
        one, other = (open_dataset(tmp_path / name, None, split) for name in "ab")
        assert same(one, replace(other, file_names=one.file_names)) and one.num_annotations >= 21
        assert [name.rpartition("/")[2] for name in one.file_names] == [n.rpartition("/")[2] for n in other.file_names]
    rows = (tmp_path / "b" / "labels" / "val" / "d.txt").read_text().splitlines()
    assert all(len(number) == 8 for number in rows[0].split()[1:])  # 0.123456: as it came


def test_what_reaches_out_of_its_image_is_cut_for_yolo(tmp_path):
    layouts.picture(tmp_path / "a.png")
    boxes = [[-2, 2, 43, 8], [-2, 2, 10, 8], [30, 20, 18, 15], [5, 5, 10, 10]]
    objects = [{"bbox": box, "iscrowd": 0, "area": 1} for box in boxes]
    objects[1]["segmentation"] = [[-2, 2, 8, 2, 8, 10]]
    document = {"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}], "categories": [{"id": 1}]}
    document["categories"][0]["name"] = "cat"
    document["annotations"] = [{"id": n, "image_id": 1, "category_id": 1, **own} for n, own in enumerate(objects, 1)]
    notes = write_yolo({"train": coco.from_document(document, tmp_path / "a.json", tmp_path)}, tmp_path / "out")
    assert notes[0] == "train: 2 objects that reach out of their image cut"
    back = open_dataset(tmp_path / "out" / "data.yaml")
    np.testing.assert_allclose(back.boxes, [[0, 2, 40, 10], [0, 2, 8, 10], [30, 20, 48, 35], [5, 5, 15, 15]])
    assert back.polygons(1)[0].tolist() == [[0, 2], [8, 2], [8, 10]]


@pytest.mark.parametrize("write", [write_voc, write_yolo])
def test_boxes_of_coco_come_back_to_the_last_bits(write, scenes, tmp_path):
    random = np.random.default_rng(1)
    low = random.uniform(0, 30, (scenes.num_annotations, 2)).round(2)
    boxes = np.concatenate([low, low + random.uniform(1, 30, low.shape).round(2)], 1)
    bare = replace(
        scenes,
        boxes=boxes,
        segment_kind=np.zeros_like(scenes.segment_kind),
        polygon_first=np.zeros_like(scenes.polygon_first),
        rles={},
    )
    write({"train": bare}, tmp_path / "out")
    back = open_dataset(tmp_path / "out", None, "train")
    assert back.file_names == bare.file_names and back.first.tolist() == bare.first.tolist()
    np.testing.assert_allclose(back.boxes, boxes, rtol=0, atol=1e-12)
    used = sorted({bare.class_names[label] for label in bare.labels}) if write is write_voc else bare.class_names
    assert [*back.class_names] == [*used]
    named = [[data.class_names[label] for label in data.labels] for data in (bare, back)]
    assert named[0] == named[1]


def test_what_a_format_has_no_form_for_is_told(scenes, tmp_path):
    crowd = np.zeros_like(scenes.crowd)
    crowd[0] = True
    boxes = scenes.boxes.copy()
    boxes[1, 2] = boxes[1, 0] + 1
    data = {"train": replace(scenes, crowd=crowd, boxes=boxes)}
    voc, yolo = write_voc(data, tmp_path / "voc"), write_yolo(data, tmp_path / "yolo")
    assert any("1 crowds became difficult" in note for note in voc) and any("masks left out" in note for note in voc)
    assert any("1 crowds or difficult objects left out" in note for note in yolo)
    assert next(note for note in voc if "a pixel" in note).startswith("train: 1 boxes of at most a pixel in width")
    assert open_dataset(tmp_path / "voc").num_annotations == scenes.num_annotations - 1
    assert open_dataset(tmp_path / "voc").difficult.sum() == 1
    assert open_dataset(tmp_path / "yolo" / "data.yaml").num_annotations == scenes.num_annotations - 1
    with pytest.raises(ValueError, match="exists already; expected the name of a new folder"):
        write_voc(data, tmp_path / "voc")
    with pytest.raises(ValueError, match="YOLO has train, val and test"):
        write_yolo({"part": scenes}, tmp_path / "new")
    twice = replace(scenes, file_names=("a/1.png", "a/1.jpg", *scenes.file_names[2:]))
    for write, said in ((write_voc, "is the name of several"), (write_yolo, "would share 1.txt")):
        with pytest.raises(ValueError, match=said):
            write({"train": twice}, tmp_path / "new")
    for write in (write_voc, write_yolo):
        with pytest.raises(ValueError, match="no such picture"):
            write({"train": scenes.take([0]), "val": replace(scenes.take([1]), image_dir=tmp_path)}, tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_renamed_there_and_back_is_the_same(scenes):
    first, second, *rest = scenes.class_names
    there = rename_classes(scenes, {first: second, second: first})
    assert there.class_names == (second, first, *rest) and not same(there, scenes)
    assert same(rename_classes(there, {first: second, second: first}), scenes)
    assert same(rename_classes(scenes, {}), scenes)


def test_classes_become_one_or_leave(scenes):
    first, second, *rest = scenes.class_names
    one = rename_classes(scenes, {second: first})
    assert one.class_names == (first, *rest) and one.num_annotations == scenes.num_annotations
    assert one.category_ids.tolist() == [scenes.category_ids[0], *scenes.category_ids[2:]]
    names = [[data.class_names[label] for label in data.labels] for data in (scenes, one)]
    assert [first if name == second else name for name in names[0]] == names[1]
    less = rename_classes(scenes, {}, [first])
    kept = scenes.take(annotations=scenes.labels != 0)
    assert less.num_images == scenes.num_images and less.annotation_ids.tolist() == kept.annotation_ids.tolist()
    assert [less.class_names[label] for label in less.labels] == [kept.class_names[label] for label in kept.labels]
    with pytest.raises(ValueError, match="every class is dropped"):
        rename_classes(scenes, {}, scenes.class_names)
    with pytest.raises(ValueError, match=f"class '{first}x' is not there, did you mean '{first}'"):
        rename_classes(scenes, {f"{first}x": "a"})


def test_halves_merge_into_the_whole(scenes):
    halves = [scenes.take(range(3)), scenes.take(range(3, 6))]
    assert same(merge(halves), scenes) and same(merge([scenes]), scenes)
    with pytest.raises(ValueError, match="is in two of the data sets; expected each picture in one"):
        merge([scenes, halves[0]])


def test_sets_whose_ids_clash_are_counted_anew(data_root, scenes, tmp_path):
    val = open_dataset(data_root / "scenes" / "val.json")
    parts = [rename_classes(scenes, {scenes.class_names[0]: "other"}), val]
    both = merge(parts)
    assert both.num_images == 9 and both.image_ids.tolist() == list(range(1, 10))
    assert both.class_names == tuple(dict.fromkeys((*parts[0].class_names, *val.class_names)))
    assert both.image_path(8).samefile(val.image_path(2)) and both.image_dir.samefile(data_root / "scenes")
    for part, start in ((parts[0], 0), (val, 6)):
        own = both.take(range(start, start + part.num_images))
        assert own.boxes.tolist() == part.boxes.tolist() and own.coords.tolist() == part.coords.tolist()
        assert [own.class_names[n] for n in own.labels] == [part.class_names[n] for n in part.labels]
        assert list(own.rles.values()) == list(part.rles.values())
    coco.write(both, tmp_path / "both.json")
    assert same(coco.read(tmp_path / "both.json", both.image_dir), both)
    beside = replace(val, image_dir=scenes.image_dir / ".." / val.image_dir.name)
    assert merge([parts[0], beside]).file_names == both.file_names


def test_the_verbs_write_what_the_functions_make(scenes, data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train, val = (data_root / "scenes" / f"{name}.json" for name in ("train", "val"))
    first = scenes.class_names[0]

    def document(*words):
        answer = call(monkeypatch, capsys, "data", *words, "--json")
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    told = document("merge", train, val, "--out", "c.json", "--rename", f"{first}=thing")
    whole = merge([rename_classes(scenes, {first: "thing"}), rename_classes(open_dataset(val), {first: "thing"})])
    assert same(coco.read("c.json", told["image_dir"]), whole) and told["images"] == 9
    told = document("rename", train, f"{first}=thing", "--drop", scenes.class_names[1], "--out", "d.json")
    assert told["classes"] == ["thing", *scenes.class_names[2:]]
    assert document("convert", data_root / "scenes", "yolo", "--to", "yolo")["splits"].keys() == {"train", "val"}
    for words in (["convert", "yolo", "one.json"], ["split", "yolo", "split.json"], ["stats", "yolo"]):
        answer = call(monkeypatch, capsys, "data", *words)  # one of the two would be left out unsaid
        assert answer.code == 2 and "yolo: split = None: expected one of ['train', 'val'] (as yolo:train)" in answer.err
    answer = call(monkeypatch, capsys, "data", "convert", "yolo", "voc", "--to", "voc")
    assert answer.code == 0 and answer.out.endswith("VOC: voc\n")
    assert open_dataset("voc", None, "val").num_images == 3
    refused = call(monkeypatch, capsys, "data", "merge", train, val, "--out", "c.json", "--drop", "thng")
    assert refused.code == 2 and "class 'thng': is in none of the sets" in refused.err
    refused = call(monkeypatch, capsys, "data", "convert", "yolo", "voc", "--to", "voc", "--force")
    assert refused.code == 2 and "--force: has no effect" in refused.err
    refused = call(monkeypatch, capsys, "data", "rename", train, "--out", "d.json")
    assert refused.code == 2 and "exists already" in refused.err
