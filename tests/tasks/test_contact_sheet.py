"""Contact sheets: every image is there, with its objects where they are; and what the command refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_call import call
from headstart.data.read.coco import read
from headstart.tasks.contact_sheet import CELL, GAP, annotated, augmented, contact_sheet
from tiny import tiny_recipe


@pytest.fixture(scope="module")
def people(data_root):
    return read(data_root / "keypoints/train.json", data_root / "keypoints/train")


def test_training_without_changes_shows_the_images_as_they_are(people, data_root):
    """Pictures after the normalisation and back, against those of the files."""
    recipe = tiny_recipe(data_root, augment="none", input__order="bgr", model__keypoint__enabled=False)
    shown = [np.asarray(each.picture, float) for each in augmented(recipe, people, 5)]
    plain = [np.asarray(each.picture, float) for each in annotated(people, people.num_images, 0)]
    assert len(shown) == 5 and len(plain) == 8 and all(picture.shape == (CELL, CELL, 3) for picture in shown)
    for picture in shown:
        nearest = min(np.abs(picture - other).mean() for other in plain)
        assert nearest < 4  # masks in frames of 16 cells have other borders than those of polygons


def test_what_changes_is_seen(people, data_root):
    recipe = tiny_recipe(data_root, augment="strongest", input__copy_paste=True, input__quarter_turns=True)
    assert len({each.picture.tobytes() for each in augmented(recipe, people, 8)}) == 8


def test_a_sheet_has_its_pictures_row_by_row():
    pictures = [Image.new("RGB", (CELL, CELL // 2), (value, 0, 0)) for value in (10, 20, 30, 40, 50)]
    sheet = np.asarray(contact_sheet(pictures))
    side = CELL + GAP
    assert sheet.shape == (2 * side + GAP, 3 * side + GAP, 3)
    assert [int(sheet[n // 3 * side + GAP, n % 3 * side + GAP, 0]) for n in range(6)] == [10, 20, 30, 40, 50, 255]
    with pytest.raises(ValueError, match="a contact sheet needs an image"):
        contact_sheet([])


def test_the_command_writes_a_picture(data_root, tmp_path, monkeypatch, capsys):
    data = [str(data_root / "keypoints/train.json"), "--images", str(data_root / "keypoints/train")]

    def view(*arguments):
        return call(monkeypatch, capsys, "data", "view", *data, *arguments)

    out = tmp_path / "sheet.png"
    answer = view("--out", str(out), "--num", "3")
    assert answer.code == 0 and "3 of 8 images" in answer.out and Image.open(out).size == (664, 664)
    changes = ["--augmented", "--recipe", "demo", "augment=strong", "--num", "2", "--out", str(tmp_path / "other.png")]
    assert "2 views of 8 images" in view(*changes).out and Image.open(tmp_path / "other.png").size == (664, 336)
    picture = Path(shutil.copytree(data_root / "keypoints/train", tmp_path / "train")) / "000000.png"
    Image.open(next(picture.parent.iterdir())).save(picture)
    content = json.loads((data_root / "keypoints/train.json").read_text())
    content["images"][0]["file_name"] = picture.name
    (tmp_path / "png.json").write_text(json.dumps(content))
    own = ["data", "view", tmp_path / "png.json", "--images", picture.parent, "--out", picture, "--force"]
    answer = call(monkeypatch, capsys, *own)
    assert answer.code == 2 and "000000.png: is read here" in answer.err
    page = tmp_path / "sheet.html"
    assert view("--out", str(page), "--num", "3").code == 0
    text = page.read_text()
    names = re.findall(r"<figcaption>(\S+\.jpg): \d+ \w+", text)
    assert len(set(names)) == text.count('src="data:image/webp;base64,') == 3 and f'alt="{names[0]}' in text
    for arguments, message in (
        (["--out", str(out)], "exists already; expected the name of a new file, or --force"),
        (
            ["--out", "sheet.jpg"],
            "sheet.jpg: is not the name of a picture or page, expected one that ends in .png",
        ),
        (["augment=strong"], "have no effect without --augmented"),
        (["--augmented", "--recipe", "base_segment", "--out", "a.png"], "is of segmentation, expected a detection"),
        (["--augmented", "augment=strnog", "--out", "a.png"], "augment: 'strnog' is unknown, expected one of none"),
    ):
        answer = view(*arguments)
        assert answer.code == 2 and message in answer.err and answer.err.count("\n") == 1
