"""Read arrays of 1 to 12 channels in 8 or 16 bits, nothing converted: .npy, and TIFF of bands, planes or pages."""

import logging
import os
import reprlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffPage

MAX_PIXELS = 89_478_485  # Pillow's own limit (256 MiB of RGB); a photograph of 50 megapixels passes
MOST_CHANNELS = 12  # as in recipes: `input.channels`
MOST_BYTES = 2**30  # of a file: MAX_PIXELS of 16-bit RGBA take 0.7 GB even where nothing is compressed
# TIFF 6.0's numbers (8 and 32946 are both deflate). tifffile reads LZW with the package imagecodecs only, and says so.
_COMPRESSION = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
_DEFLATE_RATIO = 1032  # the most bytes that one byte of deflate can stand for (zlib's documentation)
_COLOURS = (1, 2, 5)  # black is 0, RGB, CMYK: stored values are those that are meant; no palette, no inverted grey
for _name in ("tifffile", "PIL.TiffImagePlugin"):  # they print to stderr what is read or refused here
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Refused(ValueError):
    """A message that is already complete: it names the file."""


def too_large(path: str | Path, found: str) -> ValueError:
    """Error of a file whose header promises more pixels than any photograph has."""
    return Refused(f"{path}: {found} pixels: expected at most {MAX_PIXELS} (refused as a decompression bomb)")


def check_channels(path: str | Path, found: int, channels: int | None, hint: str = "") -> None:
    """Refuse a file whose number of channels is not the recipe's; None accepts any."""
    if channels not in (None, found):
        raise Refused(f"{path}: {found} channel{'s' * (found > 1)}: expected {channels} (input.channels){hint}")


def of_16_bits(values: np.ndarray) -> np.ndarray:
    """Values of 16 bits as float32 in 0..255: 65535 becomes 255."""
    return np.ascontiguousarray(values.astype(np.float32) / 257)


def read_array(file: BinaryIO, path: str | Path, channels: int | None) -> np.ndarray:
    """Values [H, W, C] of an .npy file: uint8 as they are, uint16 as float32 in 0..255."""
    shape, dtype, order = array_header(file, path)
    check_channels(path, shape[2], channels)
    values = np.frombuffer(file.read(prod(shape) * dtype.itemsize), dtype).reshape(shape, order=order)
    return of_16_bits(values) if dtype.itemsize == 2 else np.array(values, order="C")


def array_header(file: BinaryIO, path: str | Path) -> tuple[tuple[int, int, int], np.dtype, str]:
    """Shape [H, W, C], dtype and memory order of an .npy file; nothing in the file is executed."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = readers[version](file)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(f"{path}: not a readable .npy file ({reprlib.repr(reason)}): expected one array") from None
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise Refused(f"{path}: dtype {reprlib.repr(str(dtype))}: expected uint8 or uint16")
    if len(shape) not in (2, 3) or min(shape) < 1 or (len(shape) == 3 and shape[2] > MOST_CHANNELS):
        found = reprlib.repr(list(shape))
        raise Refused(f"{path}: shape {found}: expected [H,W] or [H,W,C], C from 1 to {MOST_CHANNELS}")
    shape = (*shape, 1)[:3]
    if shape[0] * shape[1] > MAX_PIXELS:
        raise too_large(path, f"{shape[1]} x {shape[0]} = {shape[0] * shape[1]}")
    found, expected = os.fstat(file.fileno()).st_size - file.tell(), prod(shape) * dtype.itemsize
    if found != expected:
        raise Refused(f"{path}: {found:,} bytes of values: expected {expected:,} for the shape {list(shape)}")
    return shape, dtype, "F" if by_columns else "C"


def read_tiff(file: BinaryIO, path: str | Path, channels: int | None) -> np.ndarray:
    """Values [H, W, C] of a TIFF: uint8 as they are, uint16 as float32 in 0..255.

    C: the bands of the first page, together or a plane each; or its pages, if each has one band. Pages of lower
    resolution are left out. None: as many as there are. Refused: more than MOST_CHANNELS, other types, pages that
    differ, palettes, a compression other than deflate, PackBits and LZW, a turned image, missing or damaged parts.
    """
    with _pages(file, path) as pages:
        bands = pages[0].samplesperpixel if len(pages) == 1 else len(pages)
        check_channels(path, bands, channels)
        for page in pages:
            _check_parts(file, page)
        planes = [page.asarray(squeeze=False, maxworkers=1) for page in pages]  # [planes, 1, H, W, bands] a page
        values = np.concatenate([np.moveaxis(plane[:, 0], 0, 2).reshape(*plane.shape[2:4], -1) for plane in planes], 2)
    return of_16_bits(values) if values.dtype.itemsize == 2 else np.ascontiguousarray(values)


def tiff_size(file: BinaryIO, path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of a TIFF that read_tiff takes, from its headers alone."""
    with _pages(file, path) as pages:
        return pages[0].imagelength, pages[0].imagewidth


@contextmanager
def _pages(file: BinaryIO, path: str | Path) -> Iterator[list["TiffPage"]]:
    """The page with all bands, or the pages with a band each, checked by their headers."""
    from tifffile import TiffFile  # here: most runs read no such file

    try:
        with TiffFile(file) as tiff:
            first = tiff.pages[0]
            pages = [first]
            if first.samplesperpixel == 1:
                found = (tiff.pages[n] for n in range(min(len(tiff.pages), 2 * MOST_CHANNELS)))
                pages = [page.aspage() for page in found if not page.is_reduced]
            for page in pages:
                _check_page(path, page, first)
            if len(pages) > MOST_CHANNELS or first.samplesperpixel > MOST_CHANNELS:
                found = max(len(pages), first.samplesperpixel)
                raise ValueError(f"at least {found} channels, expected 1 to {MOST_CHANNELS}")
            yield pages
    except Refused:
        raise
    except Exception as error:  # a damaged file raises almost anything
        reason = repr((" ".join(str(error).split()) or type(error).__name__)[:200])[1:-1]
        raise Refused(
            f"{path}: not a readable TIFF ({reason}): expected 8- or 16-bit bands, planes or pages,"
            " not compressed or by deflate; any others as .npy"
        ) from None


def _check_page(path: str | Path, page: "TiffPage", first: "TiffPage") -> None:
    if page.imagewidth * page.imagelength > MAX_PIXELS:
        raise too_large(path, f"{page.imagewidth} x {page.imagelength} = {page.imagewidth * page.imagelength}")
    for name, found, good in (
        ("data type", str(page.dtype), str(page.dtype) in ("uint8", "uint16")),
        ("bits", page.bitspersample, page.bitspersample in (8, 16)),
        ("depth", page.imagedepth, page.imagedepth == 1),
        ("compression", page.compression, page.compression in _COMPRESSION),
        ("photometric", page.photometric, page.photometric in _COLOURS),
        ("orientation", page.tags.valueof(274, 1), page.tags.valueof(274, 1) == 1),
        ("shape", page.shape, page.shape == first.shape and page.dtype == first.dtype and min(page.shape) > 0),
    ):
        if not good:
            raise ValueError(f"{name} {found}")


def _check_parts(file: BinaryIO, page: "TiffPage") -> None:
    """Refuse a page with parts that are missing, outside the file or larger than it says: values would be made up."""
    parts, size = list(zip(page.dataoffsets, page.databytecounts)), os.fstat(file.fileno()).st_size
    if not len(page.dataoffsets) == len(page.databytecounts) == prod(page.chunked):
        raise ValueError(f"{len(parts)} parts where {prod(page.chunked)} are expected")
    whole = prod(page.chunks) * page.dtype.itemsize  # bytes of one strip or tile
    for offset, count in parts:
        if offset < 1 or count < 1 or offset + count > size:
            raise ValueError(f"truncated: bytes {offset} to {offset + count} of {size}")
        if _COMPRESSION[page.compression] == "deflate" and count * _DEFLATE_RATIO > 2 * max(whole, 2**24):
            file.seek(offset)
            if len(zlib.decompressobj().decompress(file.read(count), whole + 1)) > whole:
                raise ValueError(f"a part of more than {whole} bytes")
