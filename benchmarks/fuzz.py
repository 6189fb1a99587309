"""Change bytes of files that headstart reads, and report each traceback, nameless message and hang.

    python benchmarks/fuzz.py [--seconds 600] [--seed 0] [--only TARGET ...] [--json FILE]

Each target has small sound files. Of each case some bytes are flipped, cut, repeated or replaced by what breaks
parsers; the reader then gives a value, or a ValueError of one line that begins with the file. Anything else is a
finding: it is printed with the edits that lead to it, and makes the exit code 1. COCO files are read in both ways that
the reader has, which must agree. The same seed gives the same cases. `tests/test_fuzz.py` tries a few hundred.
"""

import argparse
import io
import json
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image
from record import keep
from safetensors.torch import save

from headstart.data import images
from headstart.data.dataset import Dataset, fingerprint
from headstart.data.images import bands
from headstart.data.label_maps import PixelLabels
from headstart.data.read import coco, open_dataset, read_voc, read_yolo
from headstart.data.read.csv_boxes import read_csv
from headstart.data.read.labelme import read_labelme
from headstart.recipe.load import load_recipe
from headstart.study.spec import define_study
from headstart.training.rows import line_of, read_rows
from headstart.weights.files import read_weights

LIMIT = 2.0  # processor seconds of a case; the slowest sound one takes 0.05
HANG = 60.0  # seconds until a case counts as one without an end, though the machine may be busy with other work
MAX_PIXELS = 10**6  # of pictures here: those of 90 million take a second and a GiB, which is no finding
EDITS = ("flip", "insert", "replace", "delete", "repeat", "cut")
TOKENS = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"-Infinity", b"1e400", b"-0", b"9" * 30, b"9" * 5000,
    b"[" * 2000, b'{"a":' * 200, b'"', b"'", b"]", b"}", b",", b":", b"\n", b"\t", b"&a ", b"*a ", b"<<: ", b"!!int ",
    b"? ", b"null", b"true", b"''", b"~", b"<object>", b"</object>", b"<!ENTITY a 'b'>", b"&a;", b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"../", b"/dev/zero",
)  # fmt: skip

Edit = tuple[str, int, int, bytes]  # what, place (modulo the length), length, bytes


@dataclass(frozen=True)
class Target:
    """A file inside a folder of others, its sound contents, and the call that reads it."""

    name: str
    file: str
    contents: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None


class FindingError(Exception):
    """Something else than a value or a refusal of one line that names the file."""


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """A content after some edits."""
    for kind, place, length, given in edits:
        at = place % (len(content) + 1)
        end = min(at + length, len(content))
        if kind == "flip":
            changed = bytes(byte ^ (1 << length % 8) for byte in content[at : at + 1])
            content = content[:at] + changed + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + given + content[at:]
        elif kind == "replace":
            content = content[:at] + given + content[end:]
        elif kind == "delete":
            content = content[:at] + content[end:]
        elif kind == "repeat":
            content = content[:end] + content[at:]
        else:
            content = content[:at]
    return content


def attempt(target: Target, content: bytes, folder: Path) -> bool:
    """Whether a content is accepted; FindingError for all that is neither that nor a proper refusal."""
    path = folder / target.file
    path.write_bytes(content)
    since = time.process_time()
    try:
        small = patch.object(images, "MAX_PIXELS", MAX_PIXELS), patch.object(bands, "MAX_PIXELS", MAX_PIXELS)
        with warnings.catch_warnings(), small[0], small[1]:
            warnings.simplefilter("ignore")
            target.read(path)
        accepted = True
    except ValueError as error:
        accepted, message = False, str(error)
        if type(error) is not ValueError and not type(error).__module__.startswith("headstart"):
            raise FindingError(f"{type(error).__name__}: {message}\n{traceback.format_exc()}") from error
        if len(message.splitlines()) != 1:
            raise FindingError(f"a message of {len(message.splitlines())} lines: {message}") from error
        if path.name not in message and str(folder) not in message:  # a list names a file that is absent
            raise FindingError(f"a message without the file: {message}\n{traceback.format_exc()}") from error
    except FindingError:
        raise
    except Exception as error:
        raise FindingError(traceback.format_exc()) from error
    if (seconds := time.process_time() - since) > LIMIT:
        raise FindingError(f"{seconds:.1f} s")
    return accepted


# --- what is read -----------------------------------------------------------------------------------------------------


def both_ways(path: Path) -> Dataset:
    """A COCO file by its records, which must be the same as parsed whole."""
    try:
        whole = coco.from_document(coco.parse(path), path)
    except ValueError as error:
        whole = error
    try:
        found = coco.read(path)
    except ValueError as error:
        if isinstance(whole, Dataset) and " times: expected once" not in str(error):  # seen in the text alone
            raise FindingError(f"refused by its records, not as a whole: {error}") from error
        raise
    if not isinstance(whole, Dataset):
        raise FindingError(f"refused as a whole, not by its records: {whole}")
    if fingerprint(whole) != fingerprint(found) or whole.notes != found.notes:
        raise FindingError("read in two ways, and not the same")
    assert np.isfinite(found.boxes).all() and np.isfinite(found.areas).all() and np.isfinite(found.coords).all()
    return found


def coco_contents() -> list[bytes]:
    """One with everything that is read; one with what is repaired; one with what is skipped."""
    records = [{"id": n, "file_name": f"{n}.png", "height": 6, "width": 8} for n in (3, 1)]
    categories = [
        {"id": 7, "name": "ant", "keypoints": ["left_a", "right_a"], "skeleton": [[1, 2]]},
        {"id": 2, "name": "bee"},
    ]
    boxes = [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1.5, 2, 2], "area": 4, "iscrowd": 0,
         "segmentation": [[1, 1, 3, 1, 3, 3]], "keypoints": [1, 1, 2, 0, 0, 0]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 8, 6], "area": 9.5, "iscrowd": 1,
         "segmentation": {"size": [6, 8], "counts": [10, 5, 33]}},
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 8, 6], "difficult": 1,
         "segmentation": {"size": [6, 8], "counts": ":5Q1"}},
    ]  # fmt: skip
    whole = {"images": records, "annotations": boxes, "categories": categories}
    extra = {"info": {"a": [1, {"b": "é"}]}, "licenses": [{"id": 1, "name": "x"}]}
    return [
        json.dumps(whole).encode(),
        json.dumps(extra | whole | {"annotations": [boxes[2] | {"bbox": [1, 1, float("nan"), 2]}]}).encode(),
        json.dumps(extra | whole, indent=1, ensure_ascii=False).encode(),
    ]


VOC = (
    b"<?xml version='1.0' encoding='utf-8'?>\n<annotation><filename>a.png</filename><size><width>8</width>"
    b"<height>6</height></size><object><name>ant</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
    b"<xmax>4</xmax><ymax>4.5</ymax></bndbox></object></annotation>"
)


def voc_folder(folder: Path) -> None:
    """A picture and a folder of annotations."""
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    picture(folder / "JPEGImages" / "a.png")


def yolo_folder(folder: Path) -> None:
    """A YOLO data set of one picture."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    picture(folder / "images" / "a.png")
    (folder / "labels" / "a.txt").write_text("0 .5 .5 .5 .5\n", encoding="utf-8")
    (folder / "data.yaml").write_text("train: images\nval: list.txt\nnames: [ant, bee]\n", encoding="utf-8")
    (folder / "list.txt").write_text("images/a.png\n", encoding="utf-8")


def label_folder(folder: Path) -> None:
    """A COCO file of one picture, whose label map is read."""
    records = [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}]
    content = {"images": records, "annotations": [], "categories": [{"id": 0, "name": "sky"}]}
    (folder / "maps.json").write_text(json.dumps(content), encoding="utf-8")


def read_labels(path: Path) -> np.ndarray:
    """The label map beside `maps.json`."""
    labels = PixelLabels(coco.read(path.parent / "maps.json", path.parent), path.parent, ignore=(255,))
    labels.check(1)
    return labels(0)


def picture(path: Path) -> None:
    """A small picture."""
    Image.new("RGB", (8, 6), (200, 10, 30)).save(path)


def arrays() -> list[bytes]:
    """Small images as .npy: grey, and four channels in 16 bits."""
    found = []
    for values in (np.zeros((6, 8), np.uint8), np.zeros((6, 8, 4), np.uint16)):
        buffer = io.BytesIO()
        np.save(buffer, values)
        found.append(buffer.getvalue())
    return found


def tiffs() -> list[bytes]:
    """Small TIFF files of five channels: together, by planes and by pages, plain and compressed."""
    values, found = np.random.default_rng(0).integers(0, 65536, (5, 6, 8), np.uint16), []
    for channels, options in (
        (values.transpose(1, 2, 0), {"planarconfig": "contig", "rowsperstrip": 4}),
        (values, {"planarconfig": "separate", "compression": "deflate", "predictor": True}),
        (values.astype(np.uint8), {"bigtiff": True, "byteorder": ">"}),
    ):
        tifffile.imwrite(buffer := io.BytesIO(), channels, photometric="minisblack", **options)
        found.append(buffer.getvalue())
    return found


def pictures(kind: str) -> list[bytes]:
    """Small pictures of a format in its common modes."""
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "P", "I;16", "LA"), "GIF": ("P",), "TIFF": ("RGB", "I;16")}
    rng, found = np.random.default_rng(0), []
    for mode in modes.get(kind, ("RGB",)):
        values = rng.integers(0, 255, (6, 8, 3), np.uint8)
        image = (
            Image.fromarray(values[..., 0].astype(np.uint16))
            if mode == "I;16"
            else Image.fromarray(values).convert(mode)
        )
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        found.append(buffer.getvalue())
    return found


def label_maps() -> list[bytes]:
    """A label map."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(buffer, "PNG")
    return [buffer.getvalue()]


@cache
def tensors() -> dict[str, torch.Tensor]:
    """A few tensors of several kinds."""
    return {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2).half(), "c": torch.tensor(3)}


def torch_file(*, archive: bool) -> list[bytes]:
    """A state dict in one of torch's formats."""
    buffer = io.BytesIO()
    content = {"model": tensors(), "epoch": 3, "args": [1.5, None, ("x", True)]}
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return [buffer.getvalue()]


def pickles() -> list[bytes]:
    """Detectron's kind of file, in two protocols."""
    content = {"blobs": {name: value.numpy() for name, value in tensors().items()}, "cfg": "MODEL: x"}
    return [pickle.dumps(content, protocol) for protocol in (2, 5)]


RECIPE = {"name": "a", "train": {"rate": 0.01, "batch": 2}, "model": {"backbone": {"depth": 50}, "norm": "group"}}
STUDY = {
    "name": "a", "recipe": "base", "set": {"train.rate": 0.01}, "seeds": 2, "schedules": ["1x", "2x"],
    "arms": {"scratch": {"start.kind": "random"}, "wide": {"start.kind": "random", "train.batch": 4}},
}  # fmt: skip
LABELME = (
    b'{"shapes": [{"label": "ant", "points": [[1, 1], [5, 1], [5, 6.5]], "group_id": 1, "shape_type": "polygon"}, '
    b'{"label": "bee", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"}], "imagePath": "a.png"}'
)
SPLIT = (
    b'{"headstart_split": 1, "data": "data.yaml", "images": null, "part": null, "seed": 0, "share": 0.2, '
    b'"groups": null, "splits": {"train": ["a.png"], "val": []}}'
)
ROWS = [
    {"kind": "start", "step": 0, "source": "random", "path": None, "total": 4, "stop": 4},
    {"kind": "train", "step": 3, "losses": {"box": 0.5}, "loss": 0.5, "rate": 0.01},
    {"kind": "eval", "step": 4, "metrics": {"bbox": {"AP": 0.25}}},
    {"kind": "end", "step": 4, "checkpoint": "checkpoints/00000004.pt", "hash": "0" * 64},
]

TARGETS = {
    target.name: target
    for target in (
        Target("coco", "a.json", coco_contents, both_ways),
        Target("voc", "Annotations/a.xml", lambda: [VOC], lambda path: read_voc(path.parent.parent), voc_folder),
        Target("yolo-labels", "labels/a.txt", lambda: [b"0 .5 .5 .5 .5\n\n1 .1 .1 .3 .1 .2 .4\r\n"],
               lambda path: read_yolo(path.parent.parent / "data.yaml"), yolo_folder),
        Target("yolo-list", "list.txt", lambda: [b"images/a.png\n./images/a.png\n"],
               lambda path: read_yolo(path.parent / "data.yaml", "val"), yolo_folder),
        Target("yolo-yaml", "data.yaml", lambda: [b"path: .\ntrain: images\nval: [images]\nnames: {0: ant, 2: 'bee'}\n",
               b"train: images\nnames: [ant, x, bee]\nnc: 3\n"], read_yolo, yolo_folder),
        Target("yolo-names", "classes.txt", lambda: [b"ant\nx\nbee\n"], read_yolo, yolo_folder),
        Target("labelme", "images/a.json", lambda: [LABELME],
               lambda path: read_labelme(path.parent, [path], [path]), yolo_folder),
        Target("csv", "b.csv", lambda: [b"filename,class,xmin,ymin,xmax,ymax\na.png,ant,1,2,5,6\n",
               b"images/a.png,1,2,5,6,ant\n"], lambda path: read_csv(path.parent, [path], [path]), yolo_folder),
        Target("split", "split.json", lambda: [SPLIT], lambda path: open_dataset(path, split="train"), yolo_folder),
        Target("label-map", "a.png", label_maps, read_labels, label_folder),
        *(Target(f"image-{kind.lower()}", f"b.{kind.lower()}", lambda kind=kind: pictures(kind), images.load_image)
          for kind in images.FORMATS),
        Target("image-npy", "b.npy", arrays, images.load_image),
        Target("image-bands", "b.tif", tiffs, lambda path: images.load_image(path, 5)),
        Target("safetensors", "a.safetensors", lambda: [save(tensors(), {"author": "x"})], read_weights),
        Target("torch-archive", "a.pt", lambda: torch_file(archive=True), read_weights),
        Target("torch-sequence", "a.pth", lambda: torch_file(archive=False), read_weights),
        Target("pickle", "a.pkl", pickles, read_weights),
        Target("recipe", "a.yaml", lambda: [yaml.safe_dump(RECIPE, sort_keys=False).encode()], load_recipe),
        Target("study", "s.yaml", lambda: [yaml.safe_dump(STUDY, sort_keys=False).encode()], define_study),
        Target("rows", "rows.jsonl", lambda: ["".join(map(line_of, ROWS)).encode()], read_rows),
    )
}  # fmt: skip


# --- the long run -----------------------------------------------------------------------------------------------------


def random_edits(rng: random.Random) -> list[Edit]:
    """A few edits; mostly one."""
    count = 1 + (rng.random() < 0.4) + (rng.random() < 0.2)
    return [
        (rng.choice(EDITS), rng.getrandbits(16), rng.choice((1, 2, 4, 20)),
         rng.choice(TOKENS) if rng.random() < 0.6 else rng.randbytes(rng.choice((1, 2, 4, 8))))
        for _ in range(count)
    ]  # fmt: skip


def interrupt(signum: int, frame: object) -> None:
    """Make a hang a finding."""
    raise FindingError(f"no end after {HANG:.0f} s")


def main() -> int:
    """Try cases of all targets in turn until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(TARGETS), choices=list(TARGETS), metavar="TARGET")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, interrupt)
    counts: dict[str, Counter[str]] = {name: Counter() for name in arguments.only}
    findings: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in arguments.only}
        for name, folder in folders.items():
            folder.mkdir()
            TARGETS[name].prepare(folder)
            for content in TARGETS[name].contents():
                if not attempt(TARGETS[name], content, folder):
                    raise SystemExit(f"{name}: a sound content is refused")
        rng, until = random.Random(arguments.seed), time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            for name in arguments.only:
                target, edits = TARGETS[name], random_edits(rng)
                which = rng.randrange(len(target.contents()))
                if hasattr(signal, "SIGALRM"):
                    signal.setitimer(signal.ITIMER_REAL, HANG)
                try:
                    outcome = (
                        "accepted"
                        if attempt(target, edited(target.contents()[which], edits), folders[name])
                        else "refused"
                    )
                except FindingError as error:
                    outcome = "findings"
                    last = str(error).strip().replace(str(folders[name]), "").splitlines()
                    kind = f"{name}: {last[-1][:60]}"
                    if kind not in findings:
                        findings[kind] = {"target": name, "content": which, "edits": repr(edits), "error": str(error)}
                        print(f"{kind}\n  content {which}, edits {edits!r:.300}\n  {error}", flush=True)
                finally:
                    if hasattr(signal, "SIGALRM"):
                        signal.setitimer(signal.ITIMER_REAL, 0)
                counts[name]["cases"] += 1
                counts[name][outcome] += 1
    print(f"{'':16} {'cases':>8} {'refused':>8} {'accepted':>8} {'findings':>8}")
    whole = sum(counts.values(), Counter())
    for name, row in {**counts, "all": whole}.items():
        print(f"{name:16} " + " ".join(f"{row[column]:8,}" for column in ("cases", "refused", "accepted", "findings")))
    figures = {
        "seed": arguments.seed,
        "seconds": arguments.seconds,
        "targets": counts,
        "findings": list(findings.values()),
    }
    keep(arguments.json, figures)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
