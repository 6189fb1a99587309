"""Read image files: any common mode in, uint8 RGB out, upright."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.files import open_regular

MAX_PIXELS = 89_478_485  # Pillow's own limit (256 MiB of RGB); a photograph of 50 megapixels passes
MOST_BYTES = 2**30  # of a file: MAX_PIXELS of 16-bit RGBA take 0.7 GB even where nothing is compressed
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
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # what counts as an image in a folder


def load_image(path: str | Path) -> np.ndarray:
    """One image as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Grey is repeated three times; palette and CMYK are converted; alpha is dropped, not blended, so the colours under
    transparent pixels show. 16-bit grey is scaled by 255/65535, the same for every image: a 12-bit scan stays dark.
    Of an animation the first frame. ValueError naming the file: missing, truncated, not an image, a mode without a
    fixed range (32-bit, float), a format outside FORMATS, no regular file, more than
    MOST_BYTES bytes, or more than MAX_PIXELS pixels, which is refused before anything is decoded.
    """
    with open_image(path) as image:
        try:
            image.load()
            pixels = _rgb(image, path)
            return np.ascontiguousarray(pixels)
        except _Refused:
            raise
        except Exception as error:  # a decoder raises almost anything on a damaged file
            raise _unreadable(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels after the EXIF orientation, from the header alone; errors as load_image."""
    with open_image(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def orientation_of(path: str | Path) -> int:
    """EXIF orientation 1 to 8 of an image file (1: upright), from the header alone; errors as load_image."""
    with open_image(path) as image:
        return _orientation(image)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """An image file of one of FORMATS, nothing decoded yet, closed afterwards; errors as load_image."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise _Refused(f"{path}: no such image file") from None
    except OSError as error:
        raise _Refused(f"{path}: cannot be read ({error.strerror}): expected an image file") from None
    except ValueError as error:  # no regular file, or a name that none can have
        raise _unreadable(path, error) from None
    with file:
        try:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise ValueError(f"{size:,} bytes, more than {MOST_BYTES:,}")
            image = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(path, "far more") from None
        except Exception as error:
            raise _unreadable(path, error) from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(path, f"{width} x {height} = {width * height}")
        yield image


class _Refused(ValueError):
    """A message that is already complete."""


def _too_large(path: str | Path, found: str) -> ValueError:
    return _Refused(f"{path}: {found} pixels: expected at most {MAX_PIXELS} (refused as a decompression bomb)")


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
    return _Refused(f"{path}: not a readable image ({reason}): expected a whole file of {', '.join(FORMATS)}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing about the pixels: viewers show such images as stored
        return 1


def _rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    turn = _TURNS.get(_orientation(image))
    upright = image.transpose(turn) if turn is not None else image
    if upright.mode in _GREY_16:
        grey = _scale_16_bit(np.asarray(upright), path)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode == "F":
        raise _Refused(f"{path}: mode F (floating point): expected 8-bit colour or 8- or 16-bit grey")
    if upright.mode in ("P", "PA"):  # through RGBA: a palette may carry transparency, which then is dropped
        upright = upright.convert("RGBA")
    return np.array(upright.convert("RGB"))


def _scale_16_bit(grey: np.ndarray, path: str | Path) -> np.ndarray:
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise _Refused(f"{path}: grey values {low} to {high}: expected 16 bits, 0 to 65535")
    return ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
