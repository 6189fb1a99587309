"""Read image files: any common mode in, uint8 RGB out, upright; or any number of channels in up to 16 bits."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from headstart.data.images.bands import (
    MAX_PIXELS,
    MOST_BYTES,
    Refused,
    array_header,
    check_channels,
    of_16_bits,
    read_array,
    read_tiff,
    tiff_size,
    too_large,
)
from headstart.files import named, open_regular

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # "I": how some Pillow versions open a 16-bit PNG
# Formats that are decoded, whatever a file is called: Pillow knows more, among them EPS, which it hands to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
ARRAY = ".npy"  # NumPy's format of one array
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ARRAY)  # what counts as an image in a folder


def load_image(path: str | Path, channels: int | None = None) -> np.ndarray:
    """One image as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation; or with another number of channels.

    channels: those to give. None: RGB of a picture, all of any other file. Other than 3 of a picture: stored values of
    as many bands, without conversion. .npy is [H, W] or [H, W, C], C at most MOST_CHANNELS, of uint8 or uint16. TIFF of
    2 or more than 3 channels, and any that is no picture: `read_tiff`. 16 bits that are not converted to RGB become
    float32 in 0..255, by 255/65535, nothing rounded; of 16-bit colour in a PNG Pillow gives the upper 8 bits.

    RGB of a picture: grey is repeated three times; palette and CMYK are converted; alpha is dropped, not blended, so
    the colours under transparent pixels show. 16-bit grey is scaled by 255/65535, the same for every image: a 12-bit
    scan stays dark.
    Of an animation the first frame. ValueError naming the file: missing, truncated, not an image, a mode without a
    fixed range (32-bit, float), a format outside FORMATS, no regular file, more than
    MOST_BYTES bytes, more than MAX_PIXELS pixels, which is refused before anything is decoded, or another number of
    channels.
    """
    if _is_array(path):
        with _opened(path) as file:
            return read_array(file, path, channels)
    if _is_bands(path) or (_is_tiff(path) and channels not in (None, 1, 3)):
        with _opened(path) as file:
            bands = read_tiff(file, path, channels)
        return as_rgb(bands) if channels is None and bands.shape[2] == 1 else bands
    with open_image(path) as image:
        try:
            image.load()
            pixels = _rgb(image, path) if channels in (None, 3) else _bands(image, path, channels)
            return np.ascontiguousarray(pixels)
        except Refused:
            raise
        except Exception as error:  # a decoder raises almost anything on a damaged file
            raise _unreadable(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels after the EXIF orientation, from the header alone; errors as load_image."""
    if _is_array(path):
        with _opened(path) as file:
            return array_header(file, path)[0][:2]
    if _is_bands(path):
        with _opened(path) as file:
            return tiff_size(file, path)
    with open_image(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def orientation_of(path: str | Path) -> int:
    """EXIF orientation 1 to 8 of an image file (1: upright), from the header alone; errors as load_image."""
    if _is_array(path) or _is_bands(path):
        return 1
    with open_image(path) as image:
        return _orientation(image)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] of an image [H, W, C] in 0..255: its first three channels, or the first as grey."""
    shown = image if image.shape[2] == 3 else image[:, :, :3] if image.shape[2] > 3 else image[:, :, [0, 0, 0]]
    return shown if shown.dtype == np.uint8 else np.rint(shown).astype(np.uint8)


def thumbnail(path: str | Path, side: int) -> np.ndarray:
    """The upright image in grey as float32 [side, side], 0..255, each value the mean of its part; errors as load_image.

    A JPEG file is decoded at a fraction of its size, at least 4 * side.
    """
    grey = None
    if not _is_array(path) and not _is_bands(path):
        with open_image(path) as image:
            try:
                image.draft("L", (4 * side, 4 * side))
                grey = None if image.mode in _GREY_16 else _without_palette(_upright(image, path)).convert("L")
            except Refused:
                raise
            except Exception as error:
                raise _unreadable(path, error) from error
    if grey is None:
        grey = Image.fromarray(as_rgb(load_image(path))).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BOX), np.float32)


def is_of_macos(name: str) -> bool:
    """True for what macOS adds to archives: the folder __MACOSX, and a file ._NAME of attributes beside each."""
    return name == "__MACOSX" or name.startswith("._")


def without_copies(paths: Iterable[Path]) -> list[Path]:
    """Paths of images without each .npy beside another image of its name, and without macOS' files of attributes.

    Ultralytics keeps decoded copies there (`cache=disk`).
    """
    paths = [path for path in paths if not is_of_macos(path.name)]
    others = {path.with_suffix("") for path in paths if not _is_array(path)}
    return [path for path in paths if not _is_array(path) or path.with_suffix("") not in others]


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """An image file of one of FORMATS, nothing decoded yet, closed afterwards; errors as load_image."""
    with _opened(path) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise too_large(path, "far more") from None
        except Exception as error:
            raise _unreadable(path, error) from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise too_large(path, f"{width} x {height} = {width * height}")
        yield image


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file of at most MOST_BYTES bytes, closed afterwards."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise Refused(f"{path}: no such image file") from None
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror}): expected an image file") from None
    except ValueError as error:  # no regular file, or a name that none can have
        raise _unreadable(path, error) from None
    with named(path), file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise _unreadable(path, ValueError(f"{size:,} bytes, more than {MOST_BYTES:,}"))
        yield file


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
    reason = reason.partition(" <_io.")[0]  # Pillow adds the open file
    expected = ", ".join(FORMATS)
    return Refused(f"{path}: not a readable image ({reason}): expected a whole file of {expected}")


def _is_bands(path: str | Path) -> bool:
    """True for a TIFF that is no picture: Pillow opens 8-bit colour and grey of one plane."""
    if not _is_tiff(path):
        return False
    with _opened(path) as file:
        try:
            Image.open(file, formats=FORMATS)
            return False
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return False  # which open_image refuses
        except Exception:
            return True


def _orientation(image: Image.Image) -> int:
    try:
        found = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing about the pixels: viewers show such images as stored
        return 1
    return found if found in _TURNS else 1


def _upright(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F":
        raise Refused(f"{path}: mode F (floating point): expected 8-bit colour or 8- or 16-bit grey")
    turn = _TURNS.get(_orientation(image))
    return image.transpose(turn) if turn is not None else image


def _rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    upright = _without_palette(_upright(image, path))
    if upright.mode in _GREY_16:
        grey = _check_16_bit(np.asarray(upright), path).astype(np.uint32)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def _without_palette(image: Image.Image) -> Image.Image:
    """A palette becomes RGBA: it may carry transparency, of which Pillow would warn otherwise."""
    return image.convert("RGBA") if image.mode in ("P", "PA") else image


def _bands(image: Image.Image, path: str | Path, channels: int) -> np.ndarray:
    """The stored bands of a picture [H, W, channels]; a palette counts as the three of its colours."""
    upright = _upright(image, path)
    hint = f"; a picture has at most 4, TIFF and .npy [H,W,{channels}] more" if channels > 4 else ""
    check_channels(path, 3 if upright.mode in ("P", "PA") else len(upright.getbands()), channels, hint)
    if upright.mode in _GREY_16:
        return of_16_bits(_check_16_bit(np.asarray(upright), path))[:, :, None]
    values = np.array(upright.convert("L") if upright.mode == "1" else upright)
    return values if values.ndim == 3 else values[:, :, None]


def _is_array(path: str | Path) -> bool:
    return str(path).lower().endswith(ARRAY)


def _is_tiff(path: str | Path) -> bool:
    return str(path).lower().endswith((".tif", ".tiff"))


def _check_16_bit(grey: np.ndarray, path: str | Path) -> np.ndarray:
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise Refused(f"{path}: grey values {low} to {high}: expected 16 bits, 0 to 65535")
    return grey
