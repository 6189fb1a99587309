"""Segmentations of COCO records -> flat arrays, checked; the records give them up, so that memory is freed as we go."""

from array import array
from typing import Any

import numpy as np

from headstart.data import rle
from headstart.data.read.coco_fields import MAX_COORDINATE, check_records, is_numbers, place, wrong

NO_SEGMENT, POLYGONS, RLE = 0, 1, 2  # segment_kind
_BLOCK = 1 << 22  # coordinates handled together: keeps temporaries small beside COCO's 40 million


class Segments:
    """Grows record by record in file order; arrays() then gives any order. path is for messages."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self._coords, self._coord_ends, self._polygon_ends = array("d"), array("q", [0]), array("q", [0])
        self._kinds, self._raw_rles = bytearray(), {}

    def add(self, records: list[dict]) -> None:
        """Take the segmentations out of these annotation records; ValueError on what is no polygon and no RLE."""
        done = len(self._kinds)
        check_records(self.path, "annotation", records, done)
        coords, coord_ends = self._coords, self._coord_ends
        for n, record in enumerate(records, done):
            segmentation, kind = record.pop("segmentation", None), NO_SEGMENT
            if type(segmentation) is list:
                try:
                    for polygon in segmentation:
                        coords.extend(polygon)
                        coord_ends.append(len(coords))
                        if len(polygon) < 6 or len(polygon) % 2:
                            raise TypeError
                except (TypeError, OverflowError):
                    raise self._wrong_polygon(n, record, segmentation) from None
                kind = POLYGONS if segmentation else NO_SEGMENT
            elif type(segmentation) is dict:
                kind = RLE
                self._raw_rles[n] = segmentation
            elif segmentation is not None:
                raise wrong(self.path, place("annotation", n, record), "segmentation", segmentation, "polygons or RLE")
            self._kinds.append(kind)
            self._polygon_ends.append(len(coord_ends) - 1)

    def arrays(self, order: np.ndarray, records: list[dict], heights: np.ndarray, widths: np.ndarray) -> dict[str, Any]:
        """Segment columns of the annotations `order` [n] (file positions), whose records and image sizes are given.

        Returns segment_kind, polygon_first, coord_first, coords, rles as Dataset has them. ValueError naming the
        annotation for coordinates that are not finite and for RLE that does not fit its image. Only once: memory goes.
        """
        kinds = np.frombuffer(bytes(self._kinds), np.uint8)[order]
        columns = dict(zip(("polygon_first", "coord_first", "coords"), self._ordered(order)))
        rles = {}
        for k in np.flatnonzero(kinds == RLE).tolist():
            segmentation = self._raw_rles.pop(int(order[k]))
            try:
                rles[k] = rle.checked(segmentation, int(heights[k]), int(widths[k]))
            except ValueError as error:
                where = place("annotation", k, records[k])
                raise wrong(self.path, where, "segmentation", segmentation, str(error)) from None
        self._check_coords(records, columns)
        return {"segment_kind": kinds, **columns, "rles": rles}

    def _ordered(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        polygon_first, coord_first = (np.array(ends, np.int64) for ends in (self._polygon_ends, self._coord_ends))
        coords = np.frombuffer(self._coords, np.float64) if self._coords else np.zeros(0)
        self._coords = array("d")
        if np.array_equal(order, np.arange(len(polygon_first) - 1)):
            return polygon_first, coord_first, coords
        polygons, new_polygon_first = gather(polygon_first, order)
        new_coord_first = np.concatenate(([0], np.cumsum(np.diff(coord_first)[polygons])))
        ordered = np.empty(new_coord_first[-1])
        step = 1 << 16  # polygons a block
        for start in range(0, len(polygons), step):
            members, ends = gather(coord_first, polygons[start : start + step])
            at = new_coord_first[start]
            ordered[at : at + ends[-1]] = coords[members]
        return new_polygon_first, new_coord_first, ordered

    def _wrong_polygon(self, n: int, record: dict, segmentation: list) -> ValueError:
        position = next(k for k, p in enumerate(segmentation) if not is_numbers(p) or len(p) < 6 or len(p) % 2)
        expected = "a list of polygons, each [x1, y1, x2, y2, …] of 3 points or more"
        field = f"segmentation[{position}]"
        return wrong(self.path, place("annotation", n, record), field, segmentation[position], expected)

    def _check_coords(self, records: list[dict], columns: dict[str, Any]) -> None:
        coords = columns["coords"]
        for start in range(0, coords.size, _BLOCK):
            fine = np.abs(coords[start : start + _BLOCK]) <= MAX_COORDINATE  # NaN compares False
            if not fine.all():
                at = start + int(np.argmin(fine))
                polygon = int(np.searchsorted(columns["coord_first"], at, side="right")) - 1
                k = int(np.searchsorted(columns["polygon_first"], polygon, side="right")) - 1
                field = f"segmentation[{polygon - int(columns['polygon_first'][k])}]"
                expected = f"finite coordinates within ±{MAX_COORDINATE:.0f} pixels"
                raise wrong(self.path, place("annotation", k, records[k]), field, float(coords[at]), expected)


def gather(first: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The members of the chosen groups, in order, and the new offsets; group g has members first[g]:first[g + 1]."""
    counts = first[chosen + 1] - first[chosen]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    members = np.arange(offsets[-1]) + np.repeat(first[chosen] - offsets[:-1], counts)
    return members, offsets


def areas(segments: dict[str, Any]) -> np.ndarray:
    """Areas float64 [N] in square pixels: polygons by the shoelace formula, one by one; RLE by its pixels; else NaN."""
    kinds = segments["segment_kind"]
    found = np.full(len(kinds), np.nan)
    starts = segments["coord_first"][:-1] // 2
    if len(starts):
        points = segments["coords"].reshape(-1, 2)
        following = np.concatenate((points[1:], points[:1]))
        following[segments["coord_first"][1:] // 2 - 1] = points[starts]  # the last point closes its own polygon
        twice = np.add.reduceat(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1], starts)
        owner = np.repeat(np.arange(len(kinds)), np.diff(segments["polygon_first"]))
        sums = np.bincount(owner, np.abs(twice) / 2, minlength=len(kinds))
        found[kinds == POLYGONS] = sums[kinds == POLYGONS]
    for n, mask in segments["rles"].items():
        found[n] = rle.area(mask)
    return found
