"""Images of any number of channels and of 16 bits: read as they are stored, or refused in one line."""

import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from headstart.batch import InputSpec
from headstart.data.images import as_rgb, bands, image_size, load_image, orientation_of, without_copies
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
    assert one_line(colour, 8).endswith(
        "expected 8 (input.channels); a picture has at most 4, TIFF and .npy [H,W,8] more"
    )
    palette = picture(tmp_path / "p.png", BANDS[..., :3], "P")
    assert one_line(palette, 1) == "3 channels: expected 1 (input.channels)"


TOGETHER, PLANES = {"planarconfig": "contig"}, {"planarconfig": "separate"}
LARGE = RNG.integers(0, 65536, (40, 50, 6), dtype=np.uint16)


def tiff(path, values, **options):
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    return path


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow, of a BigTIFF, before it gives up
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("layout", "channel_first"),
    [
        (TOGETHER, False),
        (TOGETHER | {"compression": "deflate", "predictor": True, "rowsperstrip": 7}, False),
        (TOGETHER | {"tile": (16, 32)}, False),
        (PLANES | {"rowsperstrip": 9}, True),
        (PLANES | {"tile": (16, 16), "compression": "deflate"}, True),
        ({"bigtiff": True, "rowsperstrip": 16, **TOGETHER}, False),
        ({}, True),  # a page a band
        ({"compression": "deflate"}, True),
    ],
)
def test_a_tiff_of_many_bands_is_read_as_it_is_stored(tmp_path, layout, channel_first, byteorder):
    for values in (LARGE, (LARGE >> 8).astype(np.uint8), LARGE[..., :2], LARGE[..., :4]):
        stored = np.moveaxis(values, 2, 0) if channel_first else values
        path = tiff(tmp_path / "a.tif", stored, byteorder=byteorder, **layout)
        found = load_image(path, values.shape[2])
        assert found.dtype == (np.float32 if values.dtype == np.uint16 else np.uint8) and found.flags.c_contiguous
        np.testing.assert_array_equal(found, values / np.float32(257) if values.dtype == np.uint16 else values)
        assert image_size(path) == (40, 50) and orientation_of(path) == 1


@pytest.mark.parametrize("compression", ["packbits", "tiff_adobe_deflate", "raw"])
def test_four_bands_of_another_program(tmp_path, compression):
    Image.fromarray(BANDS, "RGBA").save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif", 4), BANDS)


def test_reduced_pages_of_a_tiff_are_no_bands(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(LARGE, photometric="minisblack", planarconfig="contig", subifds=0)
        file.write(LARGE[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif", 6), LARGE.astype(np.float32) / 257)


def test_a_small_tiff_cannot_expand_beyond_its_size(tmp_path):
    path = tiff(tmp_path / "a.tif", LARGE, planarconfig="contig")
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        bomb, size = zlib.compress(bytes(2**26)), path.stat().st_size
        page.tags[259].overwrite(8)
        page.tags[273].overwrite([size])
        page.tags[279].overwrite([len(bomb)])
    path.write_bytes(path.read_bytes() + bomb)
    assert "a part of more than 24000 bytes" in one_line(path, 6)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (LARGE.astype(np.float32), TOGETHER, "data type float32"),
        (LARGE.astype(np.int16), TOGETHER, "data type int16"),
        (np.zeros((4, 5, 13), np.uint8), TOGETHER, "at least 13 channels, expected 1 to 12"),
        (np.zeros((20, 4, 5), np.uint8), {}, "at least 20 channels, expected 1 to 12"),
        (LARGE, TOGETHER | {"extratags": [(274, "H", 1, 6)]}, "orientation 6"),
        (LARGE, TOGETHER | {"compression": "lzma"}, "compression 34925"),
    ],
)
def test_another_tiff_is_refused(tmp_path, values, options, expected):
    line = one_line(tiff(tmp_path / "a.tif", values, **options), 6)
    assert line.startswith(f"not a readable TIFF ({expected}") and line.endswith("any others as .npy")


def test_a_tiff_of_other_bands_is_refused(tmp_path):
    path = tiff(tmp_path / "a.tif", LARGE, planarconfig="contig")
    assert one_line(path, 5) == "6 channels: expected 5 (input.channels)"
    (tmp_path / "b.tif").write_bytes(b"many bands")
    assert one_line(tmp_path / "b.tif").startswith("not a readable TIFF (not a TIFF file")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, while it finds that the file is no picture
@pytest.mark.parametrize("options", [TOGETHER | {"compression": "deflate", "rowsperstrip": 8}, {"bigtiff": True}])
def test_a_damaged_tiff_is_refused_or_equal(tmp_path, options):
    """Each cut, and bytes changed at random: one line, or values of the stored shape; never a crash."""
    values = LARGE[..., :5] if options.get("planarconfig") else np.moveaxis(LARGE[..., :5], 2, 0)
    content = tiff(tmp_path / "a.tif", values, **options).read_bytes()
    whole, path, refused = load_image(tmp_path / "a.tif", 5), tmp_path / "b.tif", 0
    for length in RNG.integers(0, len(content), 60):
        path.write_bytes(content[:length])
        assert one_line(path, 5)
    for _ in range(120):
        changed = bytearray(content)
        changed[RNG.integers(0, len(content) if _ % 2 else 512)] = RNG.integers(0, 256)
        path.write_bytes(changed)
        try:
            assert load_image(path, 5).dtype in (whole.dtype, np.uint8)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused


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
    assert bands.MOST_CHANNELS == fields.MOST_CHANNELS
