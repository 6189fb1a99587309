"""Geometry of polygons: cells inside by the even-odd rule, and enclosed area."""

from collections.abc import Sequence

import numpy as np


def inside(polygons: Sequence[np.ndarray], box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bool [rows, columns]: which cell centres of a grid over a box lie inside the polygons.

    polygons: each [points, 2]; box [4] XYXY in the same units, of positive extent. Even-odd within one polygon, union
    over polygons; left and top edges belong to the inside, right and bottom ones do not. No polygons: all False.
    """
    if not len(polygons):
        return np.zeros((rows, columns), bool)
    lengths = [len(polygon) for polygon in polygons]
    ends = np.cumsum(lengths)
    scale = np.array([columns, rows]) / (box[2:] - box[:2])
    start = (np.concatenate(polygons) - box[:2]) * scale - 0.5  # cell centres now have whole numbers
    stop = np.roll(start, -1, 0)
    stop[ends - 1] = start[ends - lengths]  # each polygon closes on itself
    owner = np.repeat(np.arange(len(polygons)), lengths)

    every = np.arange(rows)
    spans = (start[:, 1, None] <= every) != (stop[:, 1, None] <= every)  # half-open: a vertex on a row counts once
    edge, row = np.nonzero(spans)
    along = (row - start[edge, 1]) / (stop[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + along * (stop[edge, 0] - start[edge, 0])
    return even_odd(row, np.ceil(crossing), rows, columns, owner[edge], len(polygons))


def even_odd(
    row: np.ndarray, left_of: np.ndarray, rows: int, columns: int, owner: np.ndarray | int = 0, num_polygons: int = 1
) -> np.ndarray:
    """Bool [rows, columns]: cells with an odd number of edges of any one polygon to their right.

    For each crossing of an edge with a row [n]: its row, how many cell centres lie left of it, and its polygon. All
    these cells are toggled, which is one entry of a histogram and a running sum from the right.
    """
    flat = (owner * rows + row) * (columns + 1) + np.clip(left_of, 0, columns).astype(np.int64)
    toggles = np.bincount(flat, minlength=num_polygons * rows * (columns + 1)).reshape(-1, rows, columns + 1)
    odd = (toggles[:, :, :0:-1] & 1).astype(np.uint8)
    return np.bitwise_xor.accumulate(odd, axis=2).any(0)[:, ::-1].astype(bool)


def areas(coords: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Areas float64 [P] of P polygons by the shoelace formula, in which parts of a self-crossing polygon may cancel.

    coords float64 [Q], x and y in turn; polygon p has coords[first[p]:first[p + 1]], at least one point.
    """
    starts = first[:-1] // 2
    if not len(starts):
        return np.zeros(0)
    points = coords.reshape(-1, 2)
    following = np.concatenate((points[1:], points[:1]))
    following[first[1:] // 2 - 1] = points[starts]  # the last point closes its own polygon
    return np.abs(np.add.reduceat(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1], starts)) / 2


def area(polygon: np.ndarray) -> float:
    """Area of one polygon [points, 2], as `areas`."""
    return float(areas(polygon.ravel(), np.array([0, polygon.size]))[0])
