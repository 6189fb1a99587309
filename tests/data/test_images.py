"""Every image mode becomes upright uint8 RGB; whatever cannot is refused by name."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import headstart
from headstart.data import images
from headstart.data.label_maps import _read

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def save(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options) if mode else Image.fromarray(pixels).save(path, **options)
    return path


def test_rgb_is_unchanged(tmp_path):
    found = images.load_image(save(tmp_path / "a.png", RGB))
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, RGB)


def test_grey_is_repeated(tmp_path):
    found = images.load_image(save(tmp_path / "a.png", GREY))
    np.testing.assert_array_equal(found, np.stack([GREY] * 3, 2))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = GREY > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.load_image(tmp_path / "a.png"), np.stack([bits * np.uint8(255)] * 3, 2))


def test_alpha_is_dropped_not_blended(tmp_path):
    alpha = np.concatenate((RGB, np.zeros((5, 7, 1), np.uint8)), 2)
    np.testing.assert_array_equal(images.load_image(save(tmp_path / "a.png", alpha)), RGB)


def test_grey_with_alpha(tmp_path):
    alpha = np.stack((GREY, GREY // 2), 2)
    found = images.load_image(save(tmp_path / "a.png", alpha))
    np.testing.assert_array_equal(found, np.stack([GREY] * 3, 2))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palette_with_and_without_transparency(tmp_path, transparency):
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    index = RNG.integers(0, 3, (5, 7), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    np.testing.assert_array_equal(images.load_image(tmp_path / "a.png"), palette[index])
    with warnings.catch_warnings(action="error"):  # Pillow's, of bytes of transparency
        shown = images.thumbnail(tmp_path / "a.png", 1)
    assert shown == pytest.approx(np.asarray(Image.fromarray(palette[index]).convert("L"), np.float32).mean(), abs=1)


def test_16_bit_grey_is_scaled_by_a_fixed_factor(tmp_path):
    wide = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    wide[0, :3] = 0, 65535, 257
    found = images.load_image(save(tmp_path / "a.png", wide))
    np.testing.assert_array_equal(found[:, :, 1], np.rint(wide / 257).astype(np.uint8))
    np.testing.assert_array_equal(found[0, :3, 0], [0, 255, 1])


def test_cmyk_jpeg(tmp_path):
    flat = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(images.load_image(tmp_path / "a.jpg").astype(int) - flat).max() <= 3


# What the stored pixels must be turned by, EXIF 2.3 table 6: row 0 and column 0 of each orientation.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("pixels", [RGB, GREY.astype(np.uint16) * 257], ids=["rgb", "16-bit"])
def test_exif_orientation(tmp_path, orientation, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", pixels, exif=exif)
    expected = TURNS[orientation](pixels // 257 if pixels.dtype == np.uint16 else pixels)
    found = images.load_image(path)
    np.testing.assert_array_equal(found if pixels.ndim == 3 else found[:, :, 0], expected)
    assert images.image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [0, 77])
def test_nonsense_orientation_leaves_the_image_as_stored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", RGB, exif=exif)
    np.testing.assert_array_equal(images.load_image(path), RGB)
    assert images.image_size(path) == RGB.shape[:2] and images.orientation_of(path) == 1


def bomb(path, width, height):
    """A PNG whose header promises width x height and whose body is empty."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    blob = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + blob)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("read", [images.load_image, images.image_size])
def test_a_decompression_bomb_is_refused_with_the_limit(tmp_path, width, height, read):
    path = bomb(tmp_path / "bomb.png", width, height)
    with pytest.raises(ValueError, match=r"bomb\.png.*89478485") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_truncated_images_are_refused_by_name(tmp_path):
    for name in ("a.jpg", "a.png"):
        path = save(tmp_path / name, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            images.load_image(path)
        assert images.image_size(path) == (64, 64)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 20])
def test_files_that_are_no_images_are_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    for read in (images.load_image, images.image_size):
        with pytest.raises(ValueError, match=r"broken\.jpg"):
            read(path)


@pytest.mark.filterwarnings("ignore")  # the decoders comment on what they find
def test_damaged_files_never_raise_anything_but_value_error(tmp_path):
    for name in ("a.jpg", "a.png", "a.bmp", "a.tif", "a.webp"):
        good = save(tmp_path / name, RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).read_bytes()
        for _ in range(40):
            blob = bytearray(good)
            for at in RNG.integers(0, len(blob), 8):
                blob[at] = RNG.integers(0, 256)
            (tmp_path / name).write_bytes(blob)
            try:
                found = images.load_image(tmp_path / name)
            except ValueError as error:
                assert name in str(error) and "\n" not in str(error)
            else:
                assert found.dtype == np.uint8 and found.shape[2] == 3


def test_missing_file_folder_and_float_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png: no such image file"):
        images.load_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="not a readable image"):
        images.load_image(tmp_path)
    with pytest.raises(ValueError, match=r"f\.tif: mode F"):
        images.load_image(save(tmp_path / "f.tif", np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match=r"i\.tif: grey values .* 0 to 65535"):
        images.load_image(save(tmp_path / "i.tif", np.full((4, 4), 70_000, np.int32)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_postscript_file_called_jpg_starts_no_program(tmp_path, monkeypatch):
    """A program called gs on the path leaves a file when it is run: Pillow alone runs it, `open_image` does not."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    for read in (images.load_image, images.image_size, images.orientation_of, _read):
        with pytest.raises(ValueError, match=r"photo\.jpg: not a readable .* JPEG, PNG, WEBP, TIFF, BMP, GIF"):
            read(path)
    assert not (tmp_path / "ran").exists()
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX", "SGI", "DIB", "JPEG2000"])
def test_formats_that_are_not_listed_are_refused_under_any_name(tmp_path, format):
    Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(tmp_path / "a.png", format)
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        images.load_image(tmp_path / "a.png")


@pytest.mark.parametrize("format", [*images.FORMATS, "MPO"])
def test_listed_formats_are_read_under_any_name(tmp_path, format):
    """An MPO, as many cameras write, is a JPEG with further ones behind it; of a GIF the first frame counts."""
    flat = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (80, 160)]
    several = {"save_all": True, "append_images": flat[1:]} if format in ("GIF", "WEBP", "TIFF", "MPO") else {}
    flat[0].save(tmp_path / "a.jpg", format, **several)
    assert np.abs(images.load_image(tmp_path / "a.jpg").astype(int) - 80).max() <= 2


def test_image_files_are_opened_in_one_place():
    root = Path(headstart.__file__).parent
    opened = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    }
    assert opened == {"data/images/__init__.py"}
