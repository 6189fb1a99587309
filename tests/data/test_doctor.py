"""The data doctor: each check is provoked and must name file, record and value; sound data pass; the copy is clean."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cli_call import call
from headstart.data.check import ERROR, LEVELS, NOTE, WARNING, Problem, Report, doctor
from headstart.data.check import annotations as annotation_check
from headstart.data.dataset import fingerprint
from headstart.data.read import coco
from headstart.data.shapes import write as shapes
from layouts import coco_roboflow, yolo_roboflow


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """48 training and 12 validation scenes: enough that every class is there."""
    out = tmp_path_factory.mktemp("shapes")
    shapes.generate(out, 48, 12, 3, 48, processes=1)
    return out


def _picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


SQUARE = [5.0, 5, 15, 5, 15, 15, 5, 15]


def _document(num_images: int = 3) -> dict:
    """Images 10, 11, ... of 40 x 30 with one square each, its annotation 100, 101, ...; categories 1 and 5."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(num_images)]
    annotations = [
        {"id": 100 + i, "image_id": 10 + i, "category_id": (1, 5)[i % 2], "bbox": [5, 5, 10, 10], "area": 100,
         "iscrowd": 0, "segmentation": [list(SQUARE)]}
        for i in range(num_images)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write(folder: Path, document: dict, name: str = "train.json", seed: int = 0) -> Path:
    for i, record in enumerate(document["images"]):
        if isinstance(record, dict) and isinstance(record.get("file_name"), str) and ".." not in record["file_name"]:
            _picture(folder / record["file_name"], seed=seed + i)
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def _found(report: Report, code: str) -> list[Problem]:
    return [problem for problem in report.problems if problem.code == code]


def _no_noise(report: Report) -> list[Problem]:
    """All but the remark that a handful of objects is few."""
    return [problem for problem in report.problems if problem.code != "class-rare"]


def test_generated_data_have_no_errors_and_no_warnings_but_few_objects(generated):
    named = {"train": "train", "val": "val"}
    report = doctor.check({s: doctor.Source(generated / f"{s}.json", generated / named[s]) for s in named})
    assert report.num_errors == 0
    assert {problem.code for problem in report.problems} <= {"class-rare", "negatives", "segment-box"}
    assert len(_found(report, "negatives")) == 2
    assert report.lines()[-1].startswith("0 errors, ")


def test_a_sound_file_has_no_problem(tmp_path):
    assert _no_noise(doctor.check({"train": _write(tmp_path, _document())})) == []


def _set(*keys: object, to: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def _drop(*keys: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        place = document
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


# change of the sound document; code; record named; part of the message (value and expectation)
STRUCTURAL = [
    (_set("annotations", 1, "bbox", to=[5, 5, 0, 10]), "box-degenerate", "annotation 101", "bbox = [5, 5, 0, 10]: exp"),
    (_set("annotations", 1, "bbox", to=[5, 5, 3, -1]), "box-degenerate", "annotation 101", "[5, 5, 3, -1]"),
    (_set("annotations", 1, "bbox", to=[5, 5, float("nan"), 3]), "box-degenerate", "annotation 101", "nan"),
    (_set("annotations", 1, "bbox", to=[5, 5, 3]), "box-field", "annotation 101", "bbox = [5, 5, 3]: expected four"),
    (_set("annotations", 1, "bbox", to="5 5 3 3"), "box-field", "annotation 101", "'5 5 3 3'"),
    (_drop("annotations", 1, "bbox"), "box-field", "annotation 101", "'bbox' is missing"),
    (_set("annotations", 2, "image_id", to=99), "unknown-image", "annotation 102", "image_id = 99: expected the id of"),
    (_set("annotations", 2, "category_id", to=4), "unknown-category", "annotation 102", "category_id = 4"),
    (_set("annotations", 2, "category_id", to="cat"), "unknown-category", "annotation 102", "'cat'"),
    (_set("annotations", 2, "id", to=100), "duplicate-id", "annotation 100", "id = 100: given before, in annota"),
    (_drop("annotations", 2, "id"), "annotation-id", "annotations[2]", "'id' is missing"),
    (_set("annotations", 0, "segmentation", to=[[1, 2, 3, 4]]), "segmentation", "annotation 100", "3 points or more"),
    (_set("annotations", 0, "segmentation", to=[[1, 2, 3, 4, 5, 6, 7]]), "segmentation", "annotation 100", "3 points"),
    (_set("annotations", 0, "segmentation", to={"size": [3, 3], "counts": [9]}), "segmentation", "annotation 100",
     "RLE with size [30, 40]"),
    (_set("annotations", 0, "segmentation", to={"size": [30, 40], "counts": [9]}), "segmentation", "annotation 100",
     "add up to"),
    (_set("annotations", 0, "iscrowd", to=2), "flag", "annotation 100", "iscrowd = 2: expected 0 or 1"),
    (_set("annotations", 0, "area", to=-4), "area", "annotation 100", "area = -4"),
    (_set("annotations", 0, to=[1]), "record", "annotations[0]", "[1]: expected a JSON object"),
    (_set("images", 1, "id", to=10), "duplicate-id", "image 10", "given before, in images[0]"),
    (_set("images", 1, "id", to="x"), "image-id", "images[1]", "id = 'x': expected an integer"),
    (_set("images", 1, "height", to=0), "size-field", "image 11", "height = 0: expected an integer number of pixels"),
    (_drop("images", 1, "width"), "size-field", "image 11", "'width' is missing"),
    (_set("images", 1, to={"id": 11, "file_name": "1.png", "height": 10_000, "width": 10_000}), "size-field",
     "image 11", "100000000 pixels"),
    (_set("images", 1, "file_name", to="../1.png"), "file-name", "image 11", "'../1.png': expected a path that stays"),
    (_set("images", 1, "file_name", to="0.png"), "duplicate-file_name", "image 11", "given before, in images[0]"),
    (_set("images", 1, "file_name", to=None), "file-name", "image 11", "file_name = None: expected text"),
    (_set("categories", 1, "id", to=1), "duplicate-id", "category 1", "id = 1: given before"),
    (_set("categories", 1, "name", to="cat"), "duplicate-name", "category 5", "name = 'cat': given before"),
    (_set("categories", 1, "name", to=""), "category-name", "category 5", "name = '': expected text"),
    (_set("categories", 1, "id", to=1.5), "category-id", "categories[1]", "id = 1.5: expected an integer"),
    (_set("categories", 1, "keypoints", to=["a", "a"]), "keypoint-names", "category 5", "a list of different names"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "record", "text"), STRUCTURAL)
def test_structural_error_is_named_with_record_and_value(tmp_path, change, code, record, text):
    document = _document()
    _write(tmp_path, document)
    change(document)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document))
    report = doctor.check({"train": path})
    (problem,) = _found(report, code)
    # An id that is gone leaves its annotations without image or category, which is one more error, and a true one.
    assert {other.code for other in report.of(ERROR)} <= {code, "unknown-image", "unknown-category"}
    assert problem.level == ERROR and problem.where == f"{path}: {record}"
    assert text in problem.message
    assert problem.line() in report.lines() and "\n" not in problem.line()
    # What the doctor reports is what the reader refuses or leaves out.
    try:
        assert coco.read(path).notes
    except ValueError as error:
        assert text.split(":")[0] in str(error) or code == "size-field" or code.startswith("duplicate-")


def test_every_problem_of_one_file_is_named(tmp_path):
    document = _document(40)
    path = _write(tmp_path, document)
    for n in range(0, 40, 3):
        document["annotations"][n]["bbox"] = [1, 1, -5, 3]
    for n in range(0, 40, 5):
        document["annotations"][n]["category_id"] = 77
    document["images"][20]["width"] = "wide"
    path.write_text(json.dumps(document))
    report = doctor.check({"train": path})
    named = {
        code: {problem.where for problem in _found(report, code)} for code in ("box-degenerate", "unknown-category")
    }
    assert named["unknown-category"] == {f"{path}: annotation {100 + n}" for n in range(0, 40, 5)}
    assert named["box-degenerate"] == {f"{path}: annotation {100 + n}" for n in range(0, 40, 3)}
    assert [problem.where for problem in _found(report, "size-field")] == [f"{path}: image 30"]


def test_keypoint_problems(tmp_path):
    document = _document()
    document["categories"][0]["keypoints"] = ["nose", "tail"]
    document["categories"][1]["keypoints"] = ["tail", "nose"]
    document["annotations"][0]["keypoints"] = [1, 2, 3, 4]
    report = doctor.check({"train": _write(tmp_path, document)})
    assert "the same names as the other categories" in _found(report, "keypoint-names")[0].message
    assert "6 finite numbers" in _found(report, "keypoints")[0].message


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "not valid JSON"), ("[]", "expected a JSON object"), ('{"images": []}', "'annotations' is missing"),
     ("\xff", "line 1")],
)  # fmt: skip
def test_a_file_that_is_no_data_set_is_one_error(tmp_path, content, text):
    path = tmp_path / "train.json"
    path.write_bytes(content.encode("latin-1"))
    (problem,) = doctor.check({"train": path}).problems
    assert (problem.level, problem.code, problem.where) == (ERROR, "file", str(path))
    assert text in problem.message


def test_a_missing_file_and_an_empty_one(tmp_path):
    (problem,) = doctor.check({"train": tmp_path / "train.json"}).problems
    assert "no such annotation file" in problem.message
    path = tmp_path / "empty.json"
    path.write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}')
    (problem,) = doctor.check({"train": path}).problems
    assert problem.code == "nothing-left" and "images: no sound record among 0" in problem.message


def _boxes(tmp_path: Path, *boxes: list[float], **changes: object) -> Report:
    document = _document(len(boxes))
    for record, box in zip(document["annotations"], boxes):
        record.update({"bbox": box, "segmentation": [], **changes})
    return doctor.check({"train": _write(tmp_path, document)})


def test_boxes_out_of_the_image(tmp_path):
    report = _boxes(tmp_path, [40, 5, 10, 10], [35, 5, 10, 10], [30.9, -1, 10, 10], [-20, -20, 5, 5])
    outside, reaching = _found(report, "box-outside"), _found(report, "box-reaches-out")
    assert [problem.where[-14:] for problem in outside] == ["annotation 100", "annotation 103"]
    assert [problem.level for problem in outside] == [ERROR] * 2
    assert "[40, 5, 50, 15]" in outside[0].message and "0.png, 40 x 30" in outside[0].message
    assert [problem.where[-14:] for problem in reaching] == ["annotation 101"]  # 0.9 and 1 px are rounding
    assert reaching[0].level == WARNING and "reaches 5 px out" in reaching[0].message


def test_boxes_as_shares_of_the_image_are_an_error(tmp_path):
    document = _document()
    for annotation in document["annotations"]:
        annotation |= {"bbox": [0.1, 0.2, 0.9, 0.5], "segmentation": []}
    (problem,) = _no_noise(doctor.check({"train": _write(tmp_path, document)}))
    assert (problem.level, problem.code) == (ERROR, "box-shares")
    assert problem.message == "all 3 boxes lie in the first pixel: expected pixels, not shares of the image"


def test_thin_box(tmp_path):
    (problem,) = _found(_boxes(tmp_path, [5, 5, 0.4, 10], [5, 5, 1, 1]), "box-thin")
    assert problem.value == "0.4 x 10" and problem.where.endswith("annotation 100")


def test_segmentation_and_box_disagree(tmp_path):
    document = _document(4)
    document["annotations"][1]["bbox"] = [5, 5, 10, 13.5]  # 3.5 px longer than the polygon
    document["annotations"][2]["bbox"] = [5, 5, 10, 12.5]  # within the tolerance
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[2:12, 20:30] = 1
    rle = coco_mask.encode(mask)
    document["annotations"][3]["segmentation"] = {"size": [30, 40], "counts": rle["counts"].decode()}
    found = _found(doctor.check({"train": _write(tmp_path, document)}), "segment-box")
    assert [(problem.where[-14:], problem.value) for problem in found] == [
        ("annotation 101", "3.5"),
        ("annotation 103", "15"),
    ]


def test_segmentation_without_area(tmp_path):
    document = _document(2)
    document["annotations"][1]["segmentation"] = [[5, 5, 10, 10, 15, 15]]
    (problem,) = _found(doctor.check({"train": _write(tmp_path, document)}), "segment-empty")
    assert problem.where.endswith("annotation 101")


def test_segment_bounds_equal_brute_force(generated):
    dataset = coco.read(generated / "train.json")
    bounds = annotation_check.segment_bounds(dataset)
    assert set(dataset.segment_kind) == {1, 2}
    for n in range(dataset.num_annotations):
        if dataset.segment_kind[n] == 1:
            points = np.concatenate(dataset.polygons(n))
            np.testing.assert_array_equal(bounds[n], [*points.min(axis=0), *points.max(axis=0)])
        else:
            np.testing.assert_array_equal(bounds[n], dataset.boxes[n])  # boxes of generated data are those of the mask


def test_classes_absent_and_rare(tmp_path):
    document = _document(12)
    for record in document["annotations"]:
        record["category_id"] = 1
    document["annotations"][0]["category_id"] = 5
    document["categories"].append({"id": 9, "name": "emu"})
    report = doctor.check({"train": _write(tmp_path, document)})
    assert _found(report, "class-absent")[0].message == "1 of 3 classes have no object here: emu"
    assert _found(report, "class-rare")[0].message == "1 of 3 classes have fewer than 10 objects here: dog (1)"


def test_too_many_objects_for_the_detection_limit(tmp_path):
    document = _document(2)
    record = document["annotations"][0]
    document["annotations"] += [{**record, "id": 200 + n, "bbox": [n % 20, 5, 10, 10 + n / 50]} for n in range(100)]
    (problem,) = _found(doctor.check({"train": _write(tmp_path, document)}), "many-objects")
    assert problem.where.endswith("image 10") and problem.value == "101"


def test_the_same_annotation_twice(tmp_path):
    document = _document(2)
    document["annotations"].append({**document["annotations"][0], "id": 500})
    document["annotations"].append({**document["annotations"][0], "id": 501, "category_id": 5})
    (problem,) = _found(doctor.check({"train": _write(tmp_path, document)}), "annotation-twice")
    assert problem.where.endswith("annotation 500") and "'cat'" in problem.message


def test_negatives_are_a_note_and_no_annotations_an_error(tmp_path):
    document = _document(3)
    del document["annotations"][1]
    path = _write(tmp_path, document)
    report = doctor.check({"train": path})
    assert (report.num_errors, _found(report, "negatives")[0].value) == (0, "1")
    document["annotations"] = []
    path.write_text(json.dumps(document))
    assert _found(doctor.check({"train": path}), "no-annotations")[0].level == ERROR


def test_missing_unreadable_and_mis_sized_images(tmp_path):
    path = _write(tmp_path, _document(6))
    (tmp_path / "1.png").rename(tmp_path / "1.PNG")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:300])
    (tmp_path / "3.png").write_text("hello")
    _picture(tmp_path / "4.png", size=(41, 30))
    (tmp_path / "5.png").unlink()
    report = doctor.check({"train": path})
    missing = _found(report, "image-missing")
    assert [problem.where for problem in missing] == [f"{path}: image 11", f"{path}: image 15"]
    assert "nearest name there: '1.PNG'" in missing[0].message and "nearest" not in missing[1].message
    assert [problem.value for problem in _found(report, "image-unreadable")] == ["2.png", "3.png"]
    (problem,) = _found(report, "image-size")
    assert problem.where == f"{path}: image 14"
    assert "is 30 x 41, the annotation file says 30 x 40" in problem.message
    assert report.num_errors == 5


def test_a_wrong_image_folder_is_one_error(tmp_path):
    path = _write(tmp_path, _document())
    report = doctor.check({"train": doctor.Source(path, tmp_path / "nowhere")})
    (problem,) = _found(report, "image-missing")
    assert f"none of the 3 images is in {tmp_path / 'nowhere'}" in problem.message


def test_exif_turn_is_noted_and_explains_a_wrong_size(tmp_path):
    path = _write(tmp_path, _document(2))
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(tmp_path / "0.png", size=(40, 30), exif=exif)  # upright it is 30 wide and 40 high
    _picture(tmp_path / "1.png", size=(30, 40), seed=1, exif=exif)  # upright it is 40 x 30, as annotated
    report = doctor.check({"train": path})
    (problem,) = _found(report, "image-size")
    assert problem.where.endswith("image 10") and "EXIF orientation 6" in problem.message
    (problem,) = _found(report, "image-turned")
    assert problem.level == NOTE and "0.png, 1.png" in problem.message


def test_the_same_picture_twice_in_a_split_and_across_splits(tmp_path):
    train = _write(tmp_path / "train", _document(3))
    val = _write(tmp_path / "val", _document(3), "val.json", seed=50)
    _picture(tmp_path / "train" / "1.png", seed=0)  # the pixels of 0.png
    pixels = Image.open(tmp_path / "train" / "2.png")
    pixels.save(tmp_path / "val" / "0.png", compress_level=0)  # other bytes, the same pixels
    report = doctor.check({"train": train, "val": val})
    (twice,) = _found(report, "image-twice")
    assert twice.level == WARNING and "2 times: 0.png, 1.png" in twice.message
    (overlap,) = _found(report, "split-overlap")
    assert (overlap.level, overlap.split, overlap.where) == (ERROR, "val", f"{val}: image 10")
    assert overlap.message == "0.png: the same picture as 2.png of split 'train'"


def test_splits_with_other_classes(tmp_path):
    other = _document()
    other["categories"][1]["name"] = "wolf"
    other["categories"].append({"id": 7, "name": "emu"})
    datasets = {"train": _write(tmp_path / "a", _document()), "val": _write(tmp_path / "b", other, seed=50)}
    (problem,) = _found(doctor.check(datasets), "classes-differ")
    assert problem.split == "val"
    assert (
        problem.message
        == "categories are not those of split 'train': 5: 'wolf' here, 'dog' there, 7: 'emu' here, 'none' there"
    )


def test_repairs_of_the_reader_are_noted(tmp_path):
    document = _document()
    del document["annotations"][0]["iscrowd"], document["annotations"][1]["area"]
    report = doctor.check({"train": _write(tmp_path, document)})
    assert [problem.level for problem in _found(report, "repaired")] == [NOTE, NOTE]
    assert "id 100" in _found(report, "repaired")[0].message and report.num_errors == 0


def test_other_formats(tmp_path):
    _picture(tmp_path / "voc" / "JPEGImages" / "a.png")
    (tmp_path / "voc" / "Annotations").mkdir()
    box = "<xmin>{}</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax>"
    objects = "".join(f"<object><name>cat</name><bndbox>{box.format(x)}</bndbox></object>" for x in (3, 9.0))
    size = "<size><width>40</width><height>30</height></size>"
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.png</filename>{size}{objects}</annotation>"
    )
    report = doctor.check(doctor.sources([tmp_path / "voc"]))
    (problem,) = [problem for problem in report.problems if problem.level == ERROR]
    assert problem.code == "box-degenerate" and "a.xml object 2" in problem.message
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text("<annotation>")
    (problem,) = doctor.check(doctor.sources([tmp_path / "voc"])).problems
    assert problem.level == ERROR and "a.xml" in problem.message + problem.where


def test_a_dataset_in_memory_can_be_checked(generated):
    dataset = coco.read(generated / "val.json", generated / "val")
    assert doctor.check({"val": dataset}).problems == doctor.check(
        {"val": doctor.Source(generated / "val.json", generated / "val")}
    ).problems  # fmt: skip


def test_report_lists_errors_first_and_counts():
    made = [Problem(level, "c", "s", "w", "v", "m") for level in (NOTE, ERROR, WARNING, ERROR)]
    assert [line.split()[0] for line in Report(tuple(made)).lines()[:-1]] == [ERROR, ERROR, WARNING, NOTE]
    assert Report(tuple(made)).lines()[-1] == "2 errors, 1 warning, 1 note"
    assert LEVELS == (ERROR, WARNING, NOTE)


def test_sources_from_paths_folders_and_splits(tmp_path, generated):
    found = doctor.sources([generated])
    assert {name: source.path.name for name, source in found.items()} == {"train": "train.json", "val": "val.json"}
    assert list(doctor.sources([f"{generated}:val"])) == ["val"]
    twice = doctor.sources([generated / "val.json", generated / "val.json"], [tmp_path, tmp_path / "b"])
    assert {name: source.image_dir for name, source in twice.items()} == {"val": tmp_path, "val-2": tmp_path / "b"}
    with pytest.raises(ValueError, match="split = 'tset' fits no file"):
        doctor.sources([f"{generated}:tset"])
    with pytest.raises(ValueError, match="2 folders for 1 data sets"):
        doctor.sources([generated], [tmp_path, tmp_path])
    with pytest.raises(ValueError, match="no such file"):
        doctor.sources([tmp_path / "nowhere"])


def test_a_category_of_another_ones_name_without_objects_is_left_out(tmp_path):
    """Roboflow lists the name of a data set as category 0; a class may have the same name."""
    document = _document()
    document["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
    path = _write(tmp_path, document)
    dataset = coco.read(path)
    assert dataset.category_ids.tolist() == [1, 5] and dataset.class_names == ("cat", "dog")
    assert dataset.notes == ("category 0 ('cat') taken for another of its name: no annotation has it",)
    report = doctor.check({"train": path})
    assert report.num_errors == 0 and [problem.level for problem in _found(report, "repaired")] == [NOTE]
    document["annotations"] = document["annotations"][1:2]  # of two copies without objects the last stays
    assert coco.from_document(document, path, tmp_path).category_ids.tolist() == [1, 5]


def test_every_split_of_a_folder_is_checked(tmp_path):
    """A wrong row in YOLO's val is found; COCO files of one name are told apart by their folders."""
    yolo_roboflow(tmp_path / "yolo")
    (tmp_path / "yolo" / "valid" / "labels" / "d.txt").write_text("0 9 9 9 9\n")
    (problem,) = _found(doctor.check(doctor.sources([tmp_path / "yolo"])), "file")
    assert problem.split == "val" and "d.txt: line 1: coordinate = 9" in problem.message
    with pytest.raises(ValueError, match=r"holds 2 splits \(train, val\): expected one of them"):
        doctor.fix(tmp_path / "yolo", tmp_path / "clean.json")
    coco_roboflow(tmp_path / "coco")
    assert list(doctor.sources([tmp_path / "coco"])) == ["train", "val"]
    for name in ("train/cat/1", "val/dog/2"):
        _picture(tmp_path / "folders" / f"{name}.png")
    assert list(doctor.sources([tmp_path / "folders"])) == ["train", "val"]


def test_stats_equal_counts_by_hand(generated):
    document = json.loads((generated / "train.json").read_text())
    found = doctor.stats(coco.read(generated / "train.json"))
    per_image = [sum(a["image_id"] == image["id"] for a in document["annotations"]) for image in document["images"]]
    assert found["images"] == 48 and found["pixels"] == 48 * 48 * 48
    assert found["instances"] == len(document["annotations"]) == sum(found["instances by class"].values())
    assert found["images without objects"] == per_image.count(0)
    assert found["objects per image"] == {"mean": round(np.mean(per_image), 2), "max": max(per_image)}
    small = sum(a["area"] < 1024 for a in document["annotations"])
    assert found["instances by size"] == {"small": small, "medium": found["instances"] - small, "large": 0}
    assert found["image width"] == "48 to 48"


def test_stats_leave_crowds_out_of_instances(tmp_path):
    document = _document(3)
    document["annotations"][0]["iscrowd"] = 1
    found = doctor.stats(coco.read(_write(tmp_path, document)))
    assert (found["instances"], found["crowds"], found["instances by class"]) == (2, 1, {"cat": 1, "dog": 1})


def _spoilt(folder: Path) -> Path:
    """A file with one of everything that a clean copy can do without."""
    document = _document(8)
    path = _write(folder, document)
    annotations = document["annotations"]
    annotations[0]["bbox"] = [5, 5, 0, 0]
    annotations[1]["category_id"] = 9
    annotations[2]["segmentation"] = [[1, 2]]
    annotations[3].update(bbox=[30, 5, 20, 10], segmentation=[])
    annotations[4].update(bbox=[50, 50, 5, 5], segmentation=[])
    annotations[5]["id"] = 106
    annotations[6]["id"] = 106
    document["images"].append("nonsense")
    path.write_text(json.dumps(document))
    (folder / "7.png").unlink()
    return path


def test_fix_writes_a_clean_copy_and_lists_what_it_did(tmp_path):
    path = _spoilt(tmp_path)
    before = path.read_bytes()
    lines = doctor.fix(path, tmp_path / "clean.json")
    assert path.read_bytes() == before
    clean = coco.read(tmp_path / "clean.json")
    assert clean.notes == () and doctor.check({"train": clean}).num_errors == 0
    assert clean.image_ids.tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert clean.annotation_ids.tolist() == [103, 106, 108]  # the second 106 got the first id that is free
    np.testing.assert_array_equal(clean.boxes[0], [30, 5, 40, 15])
    for part in ("annotation 100: bbox", "annotation 101: category_id", "annotation 102: segmentation[0]",
                 "annotation 104: box", "images[8]", "image 17: file_name"):  # fmt: skip
        assert sum(line.startswith("left out: ") and part in line for line in lines) == 1, part
    assert sum(line.startswith("clipped: ") and "annotation 103" in line for line in lines) == 1
    assert sum(line.startswith("given a new id: ") and "annotation 106" in line for line in lines) == 1
    assert "left out: 1 annotations of images that are left out" in lines
    assert lines[-1].startswith(f"{tmp_path / 'clean.json'}: 7 images, 3 objects, 2 classes")


def test_a_new_id_fits_beside_the_largest(tmp_path):
    document = _document(2)
    first, second = document["annotations"][:2]
    first["id"] = second["id"] = 2**63 - 1
    path = _write(tmp_path, document)
    assert [problem.code for problem in doctor.check({"train": path}).of("error")] == ["duplicate-id"]
    doctor.fix(path, tmp_path / "clean.json")
    assert coco.read(tmp_path / "clean.json").annotation_ids.tolist() == [2**63 - 1, 1]


def test_fix_of_a_sound_file_changes_nothing(generated, tmp_path):
    lines = doctor.fix(generated / "train.json", tmp_path / "copy.json", image_dir=generated / "train")
    assert len(lines) == 1
    assert fingerprint(coco.read(tmp_path / "copy.json")) == fingerprint(coco.read(generated / "train.json"))


def test_fix_refuses_to_overwrite_and_what_it_cannot_mend(tmp_path, generated, monkeypatch, capsys):
    path = _spoilt(tmp_path)
    with pytest.raises(ValueError, match=r"train\.json: exists already"):
        doctor.fix(path, path)
    with pytest.raises(ValueError, match="holds 2 splits"):
        doctor.fix(generated, tmp_path / "new.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        doctor.fix(tmp_path / "broken.json", tmp_path / "new.json")
    with pytest.raises(ValueError, match="none of its 8 images"):
        doctor.fix(path, tmp_path / "new.json", image_dir=tmp_path / "nowhere")
    answer = call(monkeypatch, capsys, "data", "check", generated / "train.json", path, "--fix", tmp_path / "new.json")
    assert answer.code == 2 and "new.json: 2 data sets given, expected one" in answer.err
    assert not (tmp_path / "new.json").exists()


def test_dropping_annotations_equals_writing_without_them(generated):
    dataset = coco.read(generated / "train.json")
    drop = np.random.default_rng(0).random(dataset.num_annotations) < 0.4
    document = json.loads((generated / "train.json").read_text())
    document["annotations"] = [a for a, gone in zip(copy.deepcopy(document["annotations"]), drop) if not gone]
    assert fingerprint(dataset.take(annotations=~drop)) == fingerprint(
        coco.from_document(document, dataset.path, dataset.image_dir)
    )
