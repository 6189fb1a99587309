"""Images of any number of channels and of 16 bits: read as they are stored, or refused in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.batch import InputSpec
from headstart.data import images
from headstart.data.images import as_rgb, image_size, load_image, orientation_of, without_copies
from headstart.data.order import Resize
from headstart.data.read import read_folders
from headstart.data.read.yolo import _images_at
from headstart.data.stream import make_batch
from headstart.recipe import fields

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7, 6), dtype=np.uint16)


def array(path, values):
    np.save(path, values)
    return path


def picture(path, values, mode=None):
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def one_line(path, *arguments):
    with pytest.raises(ValueError) as error:
        load_image(path, *arguments)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_as_it_is(tmp_path, order):
    path = array(tmp_path / "a.npy", np.array(BANDS, order=order))
    for found in (load_image(path), load_image(path, 4)):
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(found, BANDS)
    assert image_size(path) == (5, 7) and orientation_of(path) == 1


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_become_0_to_255_without_rounding(tmp_path, dtype):
    found = load_image(array(tmp_path / "a.npy", DEEP.astype(dtype)), 6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, DEEP.astype(np.float32) / 257)
    assert load_image(array(tmp_path / "b.npy", np.full((1, 1), 65535, np.uint16)))[0, 0] == [255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_give_their_bands(tmp_path, suffix):
    def read(values, channels, mode=None):
        return load_image(picture(tmp_path / f"a.{suffix}", values, mode), channels)

    np.testing.assert_array_equal(read(BANDS, 4), BANDS)
    np.testing.assert_array_equal(read(BANDS[..., :2], 2, "LA"), BANDS[..., :2])
    np.testing.assert_array_equal(read(BANDS[..., 0], 1), BANDS[..., :1])
    np.testing.assert_array_equal(read(DEEP[..., 0], 1)[..., 0], DEEP[..., 0].astype(np.float32) / 257)
    np.testing.assert_array_equal(read(BANDS[..., 0] > 127, 1)[..., 0], (BANDS[..., 0] > 127) * np.uint8(255))
    np.testing.assert_array_equal(read(BANDS, 3), BANDS[..., :3])  # as without channels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (BANDS.astype(float), "dtype 'float64': expected uint8 or uint16"),
        (BANDS.astype(np.int16), "dtype 'int16': expected uint8 or uint16"),
        (np.zeros((4, 64, 64), np.uint8), "shape [4, 64, 64]: expected [H,W] or [H,W,C], C from 1 to 12"),
        (np.zeros((0, 4), np.uint8), "shape [0, 4]: expected [H,W] or [H,W,C], C from 1 to 12"),
        (np.zeros(9, np.uint8), "shape [9]: expected [H,W] or [H,W,C], C from 1 to 12"),
        (BANDS, "4 channels: expected 6 (input.channels)"),
        (BANDS[..., 0], "1 channel: expected 6 (input.channels)"),
    ],
)
def test_another_array_is_refused(tmp_path, values, expected):
    assert one_line(array(tmp_path / "a.npy", values), 6) == expected


def test_a_damaged_array_is_refused_before_it_is_read(tmp_path):
    content = array(tmp_path / "a.npy", BANDS).read_bytes()
    for made, expected in (
        (content[:-3], "137 bytes of values: expected 140 for the shape [5, 7, 4]"),
        (content + b"more", "144 bytes of values: expected 140 for the shape [5, 7, 4]"),
        (content[:9], "not a readable .npy file"),
        (b"PK\x03\x04", "not a readable .npy file"),
        (content.replace(b"(5, 7, 4)", b"(99999, 99999)"), "99999 x 99999 = 9999800001 pixels"),
    ):
        (tmp_path / "b.npy").write_bytes(made)
        assert expected in one_line(tmp_path / "b.npy")
    assert "no such image file" in one_line(tmp_path / "c.npy")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("opened"),)


def test_no_code_in_an_array_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    assert one_line("a.npy") == "dtype 'object': expected uint8 or uint16"
    Path("b.npy").write_bytes(pickle.dumps(Trap()))
    assert "not a readable .npy file" in one_line("b.npy")
    assert not Path("opened").exists()


def test_a_picture_with_other_channels_is_refused(tmp_path):
    colour = picture(tmp_path / "a.png", BANDS[..., :3])
    assert one_line(colour, 1) == "3 channels: expected 1 (input.channels)"
    assert one_line(colour, 8).endswith("expected 8 (input.channels); a picture has at most 4, .npy [H,W,8] more")
    palette = picture(tmp_path / "p.png", BANDS[..., :3], "P")
    assert one_line(palette, 1) == "3 channels: expected 1 (input.channels)"
    (tmp_path / "b.tif").write_bytes(b"many bands")
    assert one_line(tmp_path / "b.tif").endswith("(TIFF of at most 4 channels in one plane; others as .npy)")


def test_a_batch_has_the_channels_and_their_normalisation():
    spec = InputSpec((10.0, 20.0, 30.0, 40.0), (1.0, 2.0, 4.0, 8.0), "rgb")
    batch, sizes = make_batch([BANDS, BANDS.astype(np.float32)], Resize(5, 7), spec, "cpu", flip=True)
    assert batch.shape[:2] == (2, 4) and sizes.tolist() == [[5, 7]] * 2
    expected = (torch.from_numpy(BANDS).permute(2, 0, 1).flip(2) - torch.tensor(spec.mean).view(4, 1, 1)).float()
    assert torch.equal(batch[0, :, :5, :7], expected / torch.tensor(spec.std).view(4, 1, 1))
    assert torch.equal(batch[0], batch[1])


def test_a_drawing_shows_the_first_three_channels_or_grey():
    np.testing.assert_array_equal(as_rgb(BANDS), BANDS[..., :3])
    np.testing.assert_array_equal(as_rgb(BANDS[..., :2]), np.repeat(BANDS[..., :1], 3, 2))
    np.testing.assert_array_equal(as_rgb(BANDS + np.float32(0.25)), BANDS[..., :3])


def test_copies_beside_images_are_no_images(tmp_path):
    names = ["a.jpg", "a.npy", "b.npy"]
    assert [path.name for path in without_copies(map(Path, names))] == ["a.jpg", "b.npy"]
    for split in ("cat", "dog"):
        (tmp_path / split).mkdir()
        picture(tmp_path / split / "a.png", BANDS[..., :3])
        array(tmp_path / split / "a.npy", BANDS)
        array(tmp_path / split / "b.npy", BANDS)
    assert read_folders(tmp_path).file_names == ("cat/a.png", "cat/b.npy", "dog/a.png", "dog/b.npy")
    found = _images_at(tmp_path / "data.yaml", "train", tmp_path, "cat")
    assert sorted(path.name for path in found) == ["a.png", "b.npy"]


def test_recipes_and_readers_have_the_same_most_channels():
    assert images.MOST_CHANNELS == fields.MOST_CHANNELS
