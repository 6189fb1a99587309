"""CSV tables with a box a row -> Dataset."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, without_copies
from headstart.data.read.coco import from_document
from headstart.data.read.coco_records import show
from headstart.data.read.files import MOST_TEXT, pixel, read_head, read_text, shared, walk

# Names of columns, in lower case without punctuation: TensorFlow's tables and Roboflow's; RetinaNet's have no header.
COLUMNS = {
    "name": ("filename", "file", "image", "imagename", "imagepath", "path", "imageid"),
    "label": ("class", "label", "classname", "category", "labelname"),
    "xmin": ("xmin", "x1", "left"), "ymin": ("ymin", "y1", "top"),
    "xmax": ("xmax", "x2", "right"), "ymax": ("ymax", "y2", "bottom"),
}  # fmt: skip
_EXPECTED = "expected " + ", ".join(known[0] for known in COLUMNS.values())
_HEADLESS = ("name", "xmin", "ymin", "xmax", "ymax", "label")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_boxes(path: Path) -> bool:
    """True if the first row of a CSV file names the columns of boxes, or is such a row."""
    return _columns(_first_row(path)) is not None


def why_not_boxes(path: Path) -> str:
    """The reason why a CSV file is no table of boxes, from its first row."""
    return f"columns {show(', '.join(_first_row(path)))}: {_EXPECTED}"


def _first_row(path: Path) -> list[str]:
    text = read_head(path).decode(errors="replace").removeprefix("\ufeff")
    try:
        return next(csv.reader(text.splitlines()[:1], delimiter=_delimiter(text)), [])
    except csv.Error:
        return []


def _delimiter(text: str) -> str:
    """Separator of columns: a comma, a tab, or the semicolon that spreadsheets write in some countries."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def read_csv(
    root: str | Path, files: Sequence[Path], chosen: Collection[Path], image_dir: str | Path | None = None
) -> Dataset:
    """CSV files below a folder, of which the `chosen` ones are read: a header and a box a row.

    Columns are found by name (COLUMNS), others skipped; without a header they are path, x1, y1, x2, y2, class. Corners
    are continuous pixels as written; a row with a picture alone is one without objects. Classes are the sorted names of
    all files, so that splits agree; category ids are 1..C. Pictures are found by their names below root, or image_dir,
    their size is the picture's. ValueError naming file, line, column and value for anything else that is wrong.
    """
    rows = [row for file in files for row in _rows(file)]
    names = sorted({row["label"] for row in rows if row["label"]})
    if not names:
        raise ValueError(f"{files[0]}: no row with a class: expected boxes")
    folder = Path(image_dir or root)
    found = without_copies(p for p in walk(folder) if p.suffix.lower() in SUFFIXES)
    pictures: dict[str, list[Path]] = {}
    for picture in sorted(found):
        pictures.setdefault(picture.name, []).append(picture)
    wanted = {PureWindowsPath(row["name"]).name for row in rows}
    counts = Counter(picture.parent for name in wanted for picture in pictures.get(name, ()))
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": c, "name": name} for c, name in enumerate(names, 1)]
    numbers: dict[Path, int] = {}
    for own, row in enumerate(rows, 1):
        picture = _picture(row, pictures, counts, folder)
        if row["file"] not in chosen:
            continue
        if picture not in numbers:
            numbers[picture] = len(numbers) + 1
            height, width = image_size(picture)
            place = {"file_name": picture.relative_to(folder).as_posix(), "height": height, "width": width}
            content["images"].append({"id": numbers[picture], **place})
        if row["label"]:
            x1, y1, x2, y2 = row["corners"]
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": max(0.0, (x2 - x1) * (y2 - y1)), "iscrowd": 0}
            label = names.index(row["label"]) + 1
            content["annotations"].append({"id": own, "image_id": numbers[picture], "category_id": label, **box})
    return from_document(content, root, folder)


def _columns(header: Sequence[str]) -> dict[str, int] | None:
    """The place of each column; None for a row that is neither a header nor of RetinaNet's kind."""
    plain = ["".join(filter(str.isalnum, name.lower())) for name in header]
    places = {name: next((plain.index(w) for w in known if w in plain), None) for name, known in COLUMNS.items()}
    if all(place is not None for place in places.values()):
        return {name: place for name, place in places.items() if place is not None}
    is_row = len(header) == len(_HEADLESS) and header[0].lower().strip().endswith(SUFFIXES)
    return {name: place for place, name in enumerate(_HEADLESS)} if is_row else None


def _rows(file: Path) -> list[dict[str, Any]]:
    text = read_text(file, "a table of boxes", most=MOST_TEXT)
    lines = csv.reader(text.splitlines(), delimiter=_delimiter(text), strict=True)
    places, found = None, []
    try:
        for number, cells in enumerate(lines, 1):
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{file}: line {number}"
            if places is None:
                places = _columns(cells)
                if places is None:
                    raise ValueError(f"{where}: columns {show(', '.join(cells))}: {_EXPECTED}")
                if not cells[places["name"]].lower().strip().endswith(SUFFIXES):
                    continue  # a header
            found.append(_row(file, where, cells, places))
    except csv.Error as error:
        raise ValueError(f"{file}: line {lines.line_num}: not valid CSV ({error})") from None
    return found


def _row(file: Path, where: str, cells: Sequence[str], places: dict[str, int]) -> dict[str, Any]:
    if len(cells) <= max(places.values()):
        raise ValueError(f"{where}: {len(cells)} cells: expected at least {max(places.values()) + 1}")
    texts = {name: cells[place].strip() for name, place in places.items()}
    row: dict[str, Any] = {"file": file, "where": where, "name": texts["name"], "label": texts["label"]}
    if not any(texts[name] for name in _CORNERS):
        return row | {"label": ""}
    if not texts["label"]:
        raise ValueError(f"{where}: no class: expected a name")
    return row | {"corners": [pixel(where, name, texts[name]) for name in _CORNERS]}


def _picture(row: dict[str, Any], pictures: dict[str, list[Path]], counts: Mapping[Path, int], folder: Path) -> Path:
    """The picture of a row: of several of its name that whose path ends most like the row's, then that beside the
    table, then that in the usual folder.

    counts: pictures of the table by folder. ValueError where these leave several.
    """
    path = PureWindowsPath(row["name"])
    named = pictures.get(path.name, [])
    if not named:
        raise ValueError(f"{row['where']}: {show(row['name'])}: no such picture below {folder}")
    beside = row["file"].parent if row["file"].parent != folder else None
    ranks = [(shared(path.parts[::-1], one.parts[::-1]), beside in one.parents, counts[one.parent]) for one in named]
    best = [one for one, rank in zip(named, ranks) if rank == max(ranks)]
    if len(best) > 1:
        fits = f"fits {best[0]} and {best[1]}"
        raise ValueError(f"{row['where']}: {show(row['name'])}: {fits}: expected its folder too")
    return best[0]
