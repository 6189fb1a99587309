"""Division into training and validation images: no near-duplicate on both sides, classes even, the same for a seed."""

import json

import numpy as np
import pytest
from PIL import Image

from cli_call import call
from headstart.data import read as formats
from headstart.data.check.split import alike, divide, group_images, thumbnails
from headstart.data.read import coco


def scene(number, width=48, height=36):
    """A picture unlike those of other numbers: coarse blocks of random grey."""
    blocks = np.random.RandomState(number).randint(0, 256, (4, 5), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")


def data_of(root, pictures, labels):
    """A COCO data set of named pictures, each with one object of a class."""
    root.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(root / name)
    box = {"bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    sizes = [
        {"id": i, "file_name": n, "height": p.height, "width": p.width} for i, (n, p) in enumerate(pictures.items())
    ]
    found = [{"id": i, "image_id": i, "category_id": c, **box} for i, c in enumerate(labels) if c]
    classes = [{"id": c, "name": f"c{c}"} for c in range(1, max(labels) + 1)]
    (root / "all.json").write_text(json.dumps({"images": sizes, "annotations": found, "categories": classes}))
    return coco.read(root / "all.json")


@pytest.fixture
def twins(tmp_path):
    """Ten scenes; of scene 0 also a copy that is small, a mirrored one, and a poor JPEG."""
    pictures = {f"{n}.png": scene(n) for n in range(10)}
    pictures |= {
        "small.png": scene(0).resize((24, 18)),
        "mirror.png": scene(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    data = data_of(tmp_path / "twins", pictures | {"poor.jpg": scene(0)}, [1] * 13)
    scene(0).save(tmp_path / "twins" / "poor.jpg", quality=20)
    return data


def test_near_duplicates_are_one_group(twins):
    groups = group_images(twins)
    same = [name for name, group in zip(twins.file_names, groups) if group == groups[0]]
    assert same == ["0.png", "small.png", "mirror.png", "poor.jpg"] and len(set(groups)) == 10


def test_flat_pictures_are_no_duplicates(tmp_path):
    pictures = {f"{n}.png": Image.new("RGB", (20, 20), (n, n, n)) for n in range(3)}
    data = data_of(tmp_path, pictures, [1, 1, 1])
    small = thumbnails(data)
    assert len(alike(small, small)[0]) == 0 and len(set(group_images(data))) == 3


def test_alike_equals_correlations_by_numpy(twins):
    small = thumbnails(twins).astype(float)
    mirrored = small.reshape(-1, 16, 16)[:, :, ::-1].reshape(len(small), -1)
    expected = np.maximum(np.corrcoef(small), np.corrcoef(mirrored, small)[: len(small), len(small) :]) >= 0.95
    pairs = set(zip(*(found.tolist() for found in alike(small.astype(np.float32), small.astype(np.float32)))))
    assert pairs == set(zip(*(found.tolist() for found in np.nonzero(expected))))


def test_names_that_share_a_text_stay_together(tmp_path):
    data = data_of(tmp_path, {f"cow{n // 3}_frame{n}.png": scene(n) for n in range(9)}, [1] * 9)
    groups = group_images(data, r"(cow\d+)_")
    assert [len(set(groups[3 * n : 3 * n + 3])) for n in range(3)] == [1, 1, 1] and len(set(groups)) == 3
    assert len(set(group_images(data, r"cow\d+"))) == 3
    with pytest.raises(ValueError, match=r"groups = 'dog': fits no file name, such as 'cow0_frame0\.png'"):
        group_images(data, "dog")
    with pytest.raises(ValueError, match=r"groups = '\(': not a regular expression"):
        group_images(data, "(")


@pytest.mark.parametrize("seed", range(3))
def test_whole_groups_and_even_classes(tmp_path, seed):
    random = np.random.RandomState(seed)
    labels = [1] * 60 + [2] * 20 + [3] * 5 + [0] * 15
    data = data_of(tmp_path, {f"{n}.png": Image.new("RGB", (8, 8)) for n in range(100)}, labels)
    groups = random.randint(0, 70, 100)
    held_out = divide(data, groups, 0.2, seed)
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert 16 <= held_out.sum() <= 24
    for label, expected in ((1, 12), (2, 4), (3, 1)):
        assert abs(held_out[np.array(labels) == label].sum() - expected) <= 2
    assert (divide(data, groups, 0.2, seed) == held_out).all()
    renamed = 1000 - groups  # the numbers of groups are names
    assert divide(data, renamed, 0.2, seed).sum() == pytest.approx(held_out.sum(), abs=3)


def test_another_seed_divides_otherwise(tmp_path):
    data = data_of(tmp_path, {f"{n}.png": Image.new("RGB", (8, 8)) for n in range(40)}, [1] * 40)
    parts = {divide(data, range(40), 0.25, seed).tobytes() for seed in range(5)}
    assert len(parts) == 5 and all(np.frombuffer(part, bool).sum() == 10 for part in parts)


def test_both_sides_get_images(tmp_path):
    data = data_of(tmp_path, {f"{n}.png": scene(n) for n in range(2)}, [1, 1])
    assert divide(data, [0, 1], 0.01, 0).sum() == 1 and divide(data, [0, 1], 0.99, 0).sum() == 1
    with pytest.raises(ValueError, match="all 2 images are one group of near-duplicates"):
        divide(data, [0, 0], 0.2, 0)
    with pytest.raises(ValueError, match=r"share = 1\.5: expected a share"):
        divide(data, [0, 1], 1.5, 0)


def test_data_split_writes_a_file_that_every_verb_reads(twins, tmp_path, monkeypatch, capsys):
    out = tmp_path / "kept" / "split.json"
    answer = call(monkeypatch, capsys, "data", "split", twins.path, out, "--share", "0.3", "--seed", "2")
    assert answer.code == 0 and "10 groups" in answer.out and f"{out}:train" in answer.out
    train, val = (formats.open_dataset(f"{out}:{part}") for part in ("train", "val"))
    assert (
        sorted((*train.file_names, *val.file_names)) == sorted(twins.file_names) and train.num_images > val.num_images
    )
    assert train.class_names == val.class_names and all(data.image_path(0).is_file() for data in (train, val))
    assert call(monkeypatch, capsys, "data", "check", f"{out}:train", f"{out}:val").code == 0
    assert "13" not in call(monkeypatch, capsys, "data", "stats", f"{out}:val").err
    again = call(monkeypatch, capsys, "data", "split", twins.path, out)
    assert again.code == 2 and "exists" in again.err
    first = out.read_text()
    assert (
        call(monkeypatch, capsys, "data", "split", twins.path, out, "--share", "0.3", "--seed", "2", "--force").code
        == 0
    )
    assert out.read_text() == first


def test_wrong_split_files_are_named(twins, tmp_path, monkeypatch, capsys):
    out = tmp_path / "split.json"
    call(monkeypatch, capsys, "data", "split", twins.path, out)
    with pytest.raises(ValueError, match=r"split = None: expected one of \['train', 'val'\]"):
        formats.open_dataset(out)
    content = json.loads(out.read_text())
    for change, expected in (
        ({"splits": {"train": ["none.png"]}}, r"splits\.train: 'none\.png': no such image in"),
        (
            {"splits": {"train": 2 * content["splits"]["train"][:1]}},
            r"splits\.train: '[^']+' is given twice, expected each image once",
        ),
        ({"data": "split.json"}, r"data = 'split\.json': is a split file too"),
        ({"headstart_split": 2}, r"headstart_split = 2: expected 1"),
        ({"seed": "x"}, r"split\.json: .*seed"),
        ({"data": "nowhere"}, r"nowhere: no such file or folder"),
    ):
        out.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=expected):
            formats.open_dataset(out, split="train")


def test_class_folders_are_divided_too(tmp_path, monkeypatch, capsys):
    for n in range(20):
        path = tmp_path / "set" / ("cat" if n % 2 else "dog") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(n).save(path)
    out = tmp_path / "split.json"
    assert call(monkeypatch, capsys, "data", "split", tmp_path / "set", out).code == 0
    train, val = (formats.open_folders(f"{out}:{part}") for part in ("train", "val"))
    assert np.bincount(val.labels).tolist() == [2, 2] and train.num_images == 16
    with pytest.raises(ValueError, match="one folder of images a class, without boxes"):
        formats.open_annotated(f"{out}:train")
