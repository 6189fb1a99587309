"""The report against the rows it was made from: numbers, escapes, what it loads, and studies that are not finished."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy import stats

from headstart.metrics.records import Records, ap_from_records
from headstart.report import build as report
from headstart.report import page, pictures, plots
from headstart.report.build import build_report
from headstart.report.facts import ERROR_TYPES, Facts
from headstart.report.findings import find
from headstart.report.headline import resampled
from headstart.report.page import MOST_BYTES, script_json
from headstart.report.pictures import MIN_SCORE, make_gallery
from headstart.report.references import table_1
from headstart.report.tables import class_tables, size_table
from headstart.study.folder import is_current, read_study_folder
from headstart.study.results import metric_of
from headstart.verdict.verdict import judge
from headstart.verdict.words import certainty, outcome
from study_folder import CLASSES, FILE_NAME, box_ap, build_study, hash_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")


class Page(HTMLParser):
    """Elements with attributes and own text, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict, list]] = []
        self.open: list[tuple[str, dict, list]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data)

    def of(self, tag):
        return [(attributes, "".join(texts).strip()) for name, attributes, texts in self.elements if name == tag]


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory):
    path = build_study(tmp_path_factory.mktemp("one"))
    return path, build_report(path).read_text()


@pytest.fixture(name="three", scope="module")
def _three(tmp_path_factory):
    path = build_study(tmp_path_factory.mktemp("three"), seeds=3, schedules=("3x", "6x"), pictures=False)
    return path, build_report(path).read_text()


@pytest.fixture(name="small")
def _small(monkeypatch):
    """A small study without figures, which take most of the time: build(root, ...) -> its directory."""
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    return partial(build_study, schedules=("1x", "2x"), pictures=False, log_every=100)


def final_scores(path, metric):
    """{(arm, schedule, fraction): [score of each seed]} read from the files without the package."""
    plan, found = json.loads((path / "plan.json").read_text()), {}
    for segment in plan["segments"]:
        if segment["kind"] == "tail":
            rows = [json.loads(line) for line in (path / segment["directory"] / "rows.jsonl").open()]
            kind, name = metric.split(".")
            (score,) = [r["metrics"][kind][name] for r in rows if r["kind"] == "eval" and r["step"] == segment["stop"]]
            found.setdefault((segment["arm"], segment["schedule"], segment["fraction"]), []).append(score)
    return found


def run_of(path, arm, schedule, fraction=1.0):
    """The run in which a cell of the first seed ends."""
    folder = read_study_folder(path)
    return folder.tail(
        next(c for c in folder.plan.cells if (c.arm, c.schedule, c.fraction) == (arm, schedule, fraction))
    )


def signed(value):
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def table_numbers(text):
    """{(fraction, metric, kind, arm, schedule): text} of the schedule tables."""
    cells, fraction, metric = {}, None, None
    for tag, attributes, texts in Page(text).elements:
        if tag == "table":
            fraction = attributes.get("data-fraction")
        elif tag == "tbody":
            metric = attributes.get("data-metric")
        elif tag == "td" and "data-schedule" in attributes:
            key = (
                float(fraction),
                metric,
                attributes["data-kind"],
                attributes["data-arm"],
                attributes["data-schedule"],
            )
            cells[key] = "".join(texts).strip()
    return cells


@pytest.mark.parametrize("which", ["done", "three"])
def test_the_schedule_tables_hold_the_numbers_of_the_rows(which, request):
    path, text = request.getfixturevalue(which)
    cells, checked = table_numbers(text), 0
    for metric in ("box.AP", "mask.AP", "box.AP50", "box.AP75", "mask.AP50", "mask.AP75"):
        scores = final_scores(path, metric)
        for (arm, schedule, fraction), seeds in scores.items():
            expected = [(("arm", arm), np.array(seeds), f"{100 * np.mean(seeds):.1f}")]
            if arm == "scratch":
                gap = np.array(seeds) - scores["pretrained", schedule, fraction]
                expected.append((("gap", arm), gap, signed(gap.mean())))
            for key, values, number in expected:
                spread = f" ±{100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
                if key[0] == "gap" and len(values) > 1:
                    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
                    spread = f" ({signed(low)} to {signed(high)})"
                assert cells.pop((fraction, metric, *key, schedule)) == number + spread
                checked += 1
    assert not cells and checked == 6 * 3 * (7 if which == "done" else 4)


def test_schedules_have_epochs_and_bars_one_scale(done):
    """A bar is the gap as a share of the page's largest one, in tables of sizes and of classes alike."""
    path, text = done
    folder, page = read_study_folder(path), Page(text)
    heads = [words for _, words in page.of("small") if "epochs" in words]
    assert [" ".join(words.split()) for words in heads] == [
        f"{total:,} steps, {total * folder.batch / folder.num_images[fraction]:,.4g} epochs"
        for fraction in folder.fractions
        for total in (folder.total("scratch", name, fraction) for name in folder.schedules(fraction))
    ]
    facts = Facts(folder)
    tables = [size_table(facts), *class_tables(facts.folder).values()]
    gaps = [[row["gap"].mean for row in rows if row["gap"]] for rows in tables]
    widest = max(folder.rule.margin, *(abs(gap) for own in gaps for gap in own))
    drawn = [float(a["style"].rpartition("width: ")[2].rstrip("%")) for a, _ in page.of("i") if "width" in a["style"]]
    assert drawn == [round(50 * abs(gap) / widest, 1) for own in gaps for gap in own]
    assert len({max(map(abs, own)) for own in gaps}) > 1  # tables of one maximum could not tell


def test_markup_in_names_stays_text(done):
    _, text = done
    page = Page(text)
    headers = [words for _, words in page.of("th")]
    for name in CLASSES:
        assert headers.count(name) == 2, name  # once for boxes, once for masks
    captions = " ".join(words for _, words in page.of("figcaption"))
    assert FILE_NAME.split("{")[0] in captions
    assert len(page.of("script")) == 3
    assert not any("onerror" in attributes for _, attributes, _ in page.elements)
    assert not [words for _, words in page.of("b") if words == "bold"]
    assert all(
        attributes.get("src", "data:").startswith("data:image/webp") or tag != "img"
        for tag, attributes, _ in page.elements
    )


def test_script_json_survives_any_text():
    nasty = {"</script><!--": ["<script>", "\u2028\u2029&", float("nan"), {"a": -0.5}]}
    text = script_json(nasty)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"</script><!--": ["<script>", "\u2028\u2029&", None, {"a": -0.5}]}


def test_the_page_loads_nothing_and_is_small(done):
    path, text = done
    assert (path / "report.html").stat().st_size <= 3_000_000 <= MOST_BYTES
    page = Page(text)
    loaded = [
        a[name]
        for _, a, _ in page.elements
        for name in ("src", "href", "action", "poster", "srcset", "data")
        if name in a
    ]
    assert len(loaded) > 20
    assert all(value.startswith(("data:image/", "#")) for value in loaded)
    styles = " ".join(words for _, words in page.of("style"))
    assert "url(" not in styles and "@import" not in styles
    policy = next(a["content"] for a, _ in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy


def test_one_seed_has_no_answer(done):
    path, text = done
    summary = json.loads((path / "report.json").read_text())
    assert summary["state"] == "seeds" and summary["finished"] == summary["segments"] == 29
    assert summary["title"] == "No answer yet: 1 of 3 seeds" == Page(text).of("h1")[0][1]
    assert Page(text).of("title")[0][1] == f"demo: {summary['title']}"
    assert not any(said in text for said in ("decided by the rule", "scratch is ahead", "pretrained is ahead"))
    command = Page(text).of("pre")[0][1]
    assert command == f"headstart study run {path}/study.yaml seeds=3 --out {path.parent}"
    assert command == summary["next_with_seconds"][0]["command"] and summary["next"][0]["changes"] == ["seeds=3"]


def test_the_headline_is_the_verdict_on_the_longest_schedule(three):
    path, text = three
    folder, scores = read_study_folder(path), final_scores(path, "box.AP")
    verdict = judge(
        folder.rule,
        np.array(scores["pretrained", "6x", 1.0]),
        np.array(scores["scratch", "6x", 1.0]),
        where="at 6x with all data (800 images)",
    )
    summary = json.loads((path / "report.json").read_text())
    assert summary["text"] == f"{outcome(verdict)} {certainty(verdict)}" and summary["state"] == "decided"
    assert verdict.outcome == "better" and Page(text).of("h1")[0][1] == "scratch ends ahead"
    assert summary["next"] == [] and not Page(text).of("pre")
    entry = next(e for e in summary["comparisons"] if (e["schedule"], e["fraction"]) == ("6x", 1.0))
    assert entry["mean"] == pytest.approx(verdict.mean, abs=1e-6)
    assert entry["differences"] == pytest.approx(list(verdict.differences), abs=1e-6)


def test_the_csv_says_where_each_number_comes_from(done):
    path, text = done
    folder = read_study_folder(path)
    with (path / "tables" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = final_scores(path, "mask.AP50")
    assert len(rows) == len(folder.plan.cells) == 14
    for row, cell in zip(rows, folder.plan.cells):
        assert float(row["mask.AP50"]) == scores[cell.arm, cell.schedule, cell.fraction][0]
        assert row["weights_sha256"] == hash_of(folder.tail(cell).segment) and row["weights_sha256"][:12] in text
        assert (path / row["run"] / "rows.jsonl").is_file() and row["run"] in text
        assert float(row["alone.images"]) == 8 * cell.total
    bill = sum(float(row["whole_as_spent.images"]) for row in rows)
    assert bill == pytest.approx(8 * (folder.plan.steps_shared + folder.plan.steps_pretrain))
    with (path / "tables" / "curves.csv").open() as file:
        num_evaluations = sum(run.segment.kind != "pretrain" and len(run.evaluations) for run in folder.runs.values())
        assert len(list(csv.DictReader(file))) == num_evaluations > 50


def test_figures_are_there_and_repeatable(done, tmp_path):
    path, _ = done
    names = {"cost", "curves-f0.1", "curves-f1", "errors", "fractions", "metrics", "training-f0.1", "training-f1"}
    assert {file.stem for file in (path / "figures").iterdir()} == names
    before = {name: (path / "figures" / f"{name}.svg").read_bytes() for name in names}
    for content in before.values():
        assert ElementTree.fromstring(content).tag.endswith("svg")
    facts = Facts(read_study_folder(path))
    sections = [make(facts, find(facts)) for make in report.SECTIONS]
    again = {name: draw for section in sections for name, draw in section.figures.items()}
    plots.write_figures(again, tmp_path)
    assert again.keys() == names
    assert all((tmp_path / f"{name}.svg").read_bytes() == before[name] for name in names)


def test_a_picture_is_drawn_to_the_last_pixel(tmp_path):
    figure, (axes,) = plots.panels(1, width=2.0, height=1.5)
    axes.plot([0, 1], [0, 1], color=plots.GREY)
    plots.write_figures({"line": lambda: figure}, tmp_path)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    with Image.open(tmp_path / "line.png") as picture:
        assert picture.size == (400, 300) and picture.info["dpi"] == pytest.approx((200, 200), abs=0.02)
        assert np.array_equal(np.asarray(picture), np.asarray(canvas.buffer_rgba())[..., :3])


@pytest.mark.parametrize("num_begun", [0, 1, 6])
def test_an_unfinished_study_has_no_verdict(tmp_path, small, num_begun):
    path = small(tmp_path, num_begun=num_begun)
    text = build_report(path).read_text()
    summary = json.loads((path / "report.json").read_text())
    assert summary["title"] == f"No answer yet: {num_begun} of 17 segments finished"
    assert summary["state"] == "unfinished" and summary["next"][0]["what"] == "run the missing segments"
    assert f"{num_begun} of 17 segments finished; the rule is applied when all are." in text
    assert ("No schedule is finished yet." in text) == (num_begun < 3)


def test_a_report_is_current_until_a_row_is_written(tmp_path, small):
    path = small(tmp_path, num_begun=2)
    assert not is_current(path)
    page = build_report(path)
    assert is_current(path)
    rows = next(path.rglob("rows.jsonl"))
    os.utime(rows, ns=(0, page.stat().st_mtime_ns + 1))
    assert is_current(path)
    rows.write_text(rows.read_text().replace('"rate": 0.04', '"rate": 0.02'))
    os.utime(rows, ns=(0, 0))  # a clock that was set back
    assert not is_current(path)
    build_report(path)
    assert is_current(path)
    page.unlink()
    assert not is_current(path)


def test_a_report_that_was_not_written_to_its_end_is_not_current(tmp_path, small, monkeypatch):
    path = small(tmp_path, num_begun=2)
    build_report(path)
    rows = next(path.rglob("rows.jsonl"))
    rows.write_text(rows.read_text().replace('"rate": 0.04', '"rate": 0.02'))
    monkeypatch.setattr(report, "render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_report(path)
    assert not is_current(path)
    (path / "report.json").write_text('{"inputs": ')
    assert not is_current(path)


def test_a_running_segment_shows_and_counts_as_unfinished(tmp_path, small):
    path = small(tmp_path)
    last = json.loads((path / "plan.json").read_text())["segments"][-1]
    rows = path / last["directory"] / "rows.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while writing its last row
    text = build_report(path).read_text()
    assert "16 of 17 segments finished" in text and f"at step {last['stop']:,}" in text
    assert json.loads((path / "report.json").read_text())["comparisons"]


def test_undeclared_differences_void_the_verdict(tmp_path, small):
    sheet = [{"field": "train.rate", "values": {"pretrained": 0.04, "scratch": 0.02}, "declared": False}]
    path = small(tmp_path, differences=sheet)
    text = build_report(path).read_text()
    assert json.loads((path / "report.json").read_text())["state"] == "undeclared"
    assert "the arms differ in undeclared fields: train.rate" in text


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": None},
        {"rule": None, "arms": {"scratch": {}}, "pretrain": {}},
        {
            "arms": {"pretrained": {"start.weights": "w.pt"}, "scratch": {}, "other": {"train.rate": 0.01}},
            "pretrain": {},
        },
        {"schedules": {"pretrained": ["1x"], "scratch": ["2x"]}, "fractions": [1.0]},
    ],
    ids=["no rule", "one arm", "three arms", "no common schedule"],
)
def test_studies_of_other_kinds_render(tmp_path, settings):
    path = build_study(tmp_path, settings=settings, schedules=("1x", "2x"), pictures=False, log_every=100)
    text = build_report(path).read_text()
    cells = table_numbers(text)
    for (arm, schedule, fraction), (score,) in final_scores(path, "box.AP").items():
        assert cells[fraction, "box.AP", "arm", arm, schedule] == f"{100 * score:.1f}"


def test_the_papers_numbers_stand_beside_a_study_that_says_so(tmp_path, small):
    path = small(tmp_path, schedules=("1x", "2x", "6x"), fractions=(1.0,))
    text = (path / "study.yaml").read_text()
    assert "paper: null" in text
    (path / "study.yaml").write_text(text.replace("paper: null", "paper: R50"))
    cells = table_numbers(build_report(path).read_text())
    assert cells[1.0, "box.AP", "paper", "random (R50)", "2x"] == "36.8"
    assert cells[1.0, "box.AP", "paper gap", "random", "6x"] == "+0.2"
    asked = [answer["question"] for answer in json.loads((path / "report.json").read_text())["answers"]]
    assert "When does scratch catch up?" in asked and not any("labelled images" in each for each in asked)
    assert cells[1.0, "box.AP", "paper", "pre-trained (R50)", "1x"] == "–"
    gaps = {
        b: [round(100 * (t["random"][s] - t["pre-trained"][s]), 1) for s in t["random"]] for b, t in table_1().items()
    }
    assert gaps == {"R50": [-3.5, -1.3, -0.3, -0.2, 0.2], "R101": [-3.6, -1.3, -0.5, 0.3, 0.5]}


def test_broken_files_are_named(tmp_path):
    path = build_study(tmp_path, num_begun=0, pictures=False)
    (path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(str(path / "plan.json"))):
        build_report(path)
    with pytest.raises(ValueError, match=r"study\.yaml"):
        build_report(tmp_path / "nothing")


def test_samples_are_the_images_that_differ_most(done):
    path, _ = done
    folder = read_study_folder(path)
    samples = make_gallery(folder)
    tails = {c.arm: folder.tail(c) for c in folder.plan.cells if (c.schedule, c.fraction) == ("6x", 1.0)}
    f1 = [f1_by_hand(Records.load(tails[arm].directory / "records-box-1800.npz")) for arm in ("pretrained", "scratch")]
    lead = f1[1] - f1[0]
    for arm, sign in (("pretrained", -1), ("scratch", 1)):
        mine = [sample for sample in samples.images if sample.leader == arm]
        assert [sign * (s.f1[1] - s.f1[0]) for s in mine] == pytest.approx(sorted(sign * lead)[::-1][: len(mine)])
        assert len(mine) == min(4, (sign * lead > 0).sum()) > 0
        for sample in mine:
            assert sample.f1 == pytest.approx((f1[0][sample.image_id - 10], f1[1][sample.image_id - 10]))


def test_pictures_that_do_not_fit_are_left_out_on_both_sides(done, monkeypatch):
    folder = read_study_folder(done[0])
    sizes = [sum(len(panel.picture) for panel in image.panels) for image in make_gallery(folder).images]
    monkeypatch.setattr(pictures, "MOST_BYTES", sum(sizes[:4]))
    assert [image.leader for image in make_gallery(folder).images] == ["pretrained", "scratch"] * 2


def test_arms_without_a_detection_that_is_shown_are_not_said_to_detect_the_same(done, monkeypatch):
    monkeypatch.setattr(pictures, "MIN_SCORE", 2.0)
    told = "No image tells the arms apart at the end of 6x (seed 0): their detections with a score of at least 2 have"
    assert make_gallery(read_study_folder(done[0])) == pictures.Gallery(f"{told} the same F1.")


def f1_by_hand(records):
    values = []
    for image in range(len(records.image_ids)):
        mine = (records.image == image) & (records.score >= MIN_SCORE)
        annotated = int(records.gt_count[records.gt_image == image].sum())
        hits = found = 0
        for level in range(10):
            counted = mine & ~records.ignored[:, level]
            hits += int((counted & records.matched[:, level]).sum())
            found += int(counted.sum())
        total = found + 10 * annotated
        values.append(2 * hits / total if total else 1.0)
    return np.array(values)


def test_the_noise_of_test_images_comes_from_the_records(done, tmp_path, monkeypatch):
    path, text = done
    assert "Not known:" in text  # the made-up rows do not have the score of the made-up predictions
    copy = tmp_path / "demo"
    shutil.copytree(path, copy)
    records, cells = {}, [("6x", 1.0), ("3x", 0.1)]
    for arm, cell in ((arm, cell) for arm in ("pretrained", "scratch") for cell in cells):
        folder = read_study_folder(copy)
        tail = folder.tail(folder.cells_at(arm, *cell)[0])
        (records_file,) = tail.directory.glob("records-box-*.npz")
        own, rows = Records.load(records_file), [dict(row) for row in tail.rows]
        final = next(r for r in rows if r["kind"] == "eval" and r["step"] == tail.segment.stop)
        final["metrics"]["box"]["AP"] = ap_from_records(own)["AP"]
        (tail.directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        records[arm, cell] = own
    monkeypatch.setattr(resampled, "NUM_RESAMPLES", 5)
    differences, num_images = resampled.resampled_differences(read_study_folder(copy), "6x", 1.0)
    scores, _ = resampled.resampled_scores(read_study_folder(copy), cells, number=5)
    generator, expected = np.random.default_rng(0), []
    for _ in range(5):
        weights = np.bincount(generator.integers(0, 12, 12), minlength=12)
        expected.append([ap_from_records(own, weights)["AP"] for own in records.values()])
    expected = np.array(expected).T.reshape(1, 2, 2, 5)
    assert num_images == 12 and scores == pytest.approx(expected)
    assert differences == pytest.approx(expected[:, 1, 0] - expected[:, 0, 0])


def test_no_torch_is_imported():
    code = "import sys, headstart.report.build, headstart.report.live; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_metrics_without_a_value_are_not_numbers():
    row = {"metrics": {"box": {"AP": None, "AP50": 0.5}, "class": {"top1": 0.25}}}
    assert np.isnan(metric_of(row, "box.AP")) and np.isnan(metric_of(row, "mask.AP"))
    assert (metric_of(row, "box.AP50"), metric_of(row, "top1")) == (0.5, 0.25)


# What a reader would do, and what they would then see.
DRIVER = """
window.addEventListener("load", async () => {
  const seen = {}, chart = document.getElementById("curve-chart");
  while (!chart.data) await new Promise((done) => setTimeout(done, 20));
  const set = (selector, change) => {
    const input = document.querySelector(selector);
    change(input);
    input.dispatchEvent(new Event("input", {bubbles: true}));
  };
  const highest = () => Math.max(...chart.data.flatMap((trace) => trace.y));
  const amounts = () => [...document.querySelectorAll("#cost-bars .amount")].map((node) => node.textContent);
  seen.mains = document.querySelectorAll(".main-svg").length;
  seen.traces = chart.data.length;
  seen.highest = highest();
  Plotly.Fx.hover(chart, [{curveNumber: 0, pointNumber: 0}]);
  seen.hover = chart.querySelector(".hoverlayer").textContent;
  seen.alone = amounts();
  set("#curve-metric", (select) => { select.value = "mask.AP"; });
  seen.mask = highest();
  set('input[name="fraction"][value="0.1"]', (radio) => { radio.checked = true; });
  seen.tenth = highest();
  set("#curve-axis", (select) => { select.value = "images+"; });
  const own = chart.data.filter((trace) => trace.hovertext[0].includes("pretrained"));
  seen.first = Math.min(...own.map((trace) => trace.x[0]));
  set('input[name="arm"][value="scratch"]', (box) => { box.checked = false; });
  seen.fewer = chart.data.length;
  set('input[name="schedule"][value="3x"]', (box) => { box.checked = false; });
  seen.ends = chart.data.flatMap((trace) => trace.text).filter(Boolean);
  set('input[name="way"][value="as_spent"]', (radio) => { radio.checked = true; });
  seen.spent = amounts();
  const mistakes = document.getElementById("mistake-chart");
  seen.lost = mistakes.data.map((trace) => trace.y);
  Plotly.Fx.hover(mistakes, [{curveNumber: 0, pointNumber: 0}]);
  seen.mistake = mistakes.querySelector(".hoverlayer").textContent;
  set('input[name="mistake-kind"][value="mask"]', (radio) => { radio.checked = true; });
  set('input[name="mistake-value"][value="counts"]', (radio) => { radio.checked = true; });
  seen.counts = mistakes.data.map((trace) => trace.y);
  set("#curve-metric", (select) => { select.value = "loss"; });
  seen.loss = highest();
  set("#curve-axis", (select) => { select.value = "seconds+"; });
  seen.unpaid = [chart.data.flatMap((trace) => trace.x).filter((x) => x !== null), chart.layout.xaxis.title.text];
  const made = document.createElement("pre");
  made.id = "seen";
  made.textContent = JSON.stringify(seen);
  document.body.append(made);
});
"""


def in_chromium(page, tmp_path, *, width=1200):
    """The elements of a page after its scripts; the browser's console must stay empty."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += [f"--window-size={width},2000", "--virtual-time-budget=30000", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}"]
    result = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=180)
    assert "CONSOLE" not in result.stderr, result.stderr
    return Page(result.stdout)


@pytest.mark.parametrize("colour", [*plots.RANDOM_COLOURS, *plots.WEIGHTS_COLOURS])
def test_text_in_the_colour_of_an_arm_can_be_read(colour):
    """A contrast of 4.5 with the card, by the formula of WCAG 2."""

    def light(text):
        parts = np.array([int(text[n : n + 2], 16) for n in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    assert 1.05 / (light(page._darker(colour)) + 0.05) >= 4.5
    assert (light(page.DARK[colour]) + 0.05) / (light("#1a1e23") + 0.05) >= 4.5


AXE = """
window.addEventListener("load", async () => {
  const isDrawn = () => document.querySelectorAll(".main-svg").length >= 6;
  while (!isDrawn()) await new Promise((done) => setTimeout(done, 20));
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const bad = found.violations.filter((each) => ["serious", "critical"].includes(each.impact));
  const told = bad.flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.html}`));
  parent.postMessage({name, told, rules: found.passes.length, width: document.documentElement.scrollWidth}, "*");
});
"""
COLLECT = """
const seen = {};
addEventListener("message", ({data}) => {
  seen[data.name] = data;
  if (Object.keys(seen).length < document.querySelectorAll("iframe").length) return;
  const made = document.createElement("pre");
  made.id = "seen";
  made.textContent = JSON.stringify(seen);
  document.body.append(made);
});
"""


@pytest.mark.slow
@needs_chromium
def test_no_serious_barrier_in_light_and_dark_on_a_phone_and_a_screen(tmp_path, monkeypatch):
    """axe-core's rules (WCAG 2 A and AA, and its own) on a page with all sections, differences of seeds among them."""
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    text = build_report(build_study(tmp_path, seeds=3, schedules=("1x", "6x"), log_every=100)).read_text()
    assert 'class="gap leads"' in text
    axe = (files("axe_core_python") / "axe.min.js").read_text()
    frames = []
    for scheme in ("light", "dark"):
        chosen = text.replace("(prefers-color-scheme: dark)", f"(m{'in' if scheme == 'dark' else 'ax'}-width: 1px)")
        page = chosen.replace("</body>", f"<script>{axe}</script><script>{AXE}</script></body>")
        (tmp_path / f"{scheme}.html").write_text(page)
        for width in (390, 1280):
            place = f'name="{scheme} {width}" src="{scheme}.html" style="width: {width}px; height: 900px; border: 0"'
            frames.append(f"<iframe {place}></iframe>")
    (tmp_path / "all.html").write_text(f"<!doctype html><body>{''.join(frames)}<script>{COLLECT}</script>")
    page = in_chromium(tmp_path / "all.html", tmp_path, width=1400)
    seen = json.loads(next(words for a, words in page.of("pre") if a.get("id") == "seen"))
    assert sorted(seen) == ["dark 1280", "dark 390", "light 1280", "light 390"]
    assert [line for found in seen.values() for line in found["told"]] == []
    assert all(found["rules"] > 20 and found["width"] <= int(name.split()[1]) for name, found in seen.items())


@needs_chromium
def test_in_a_browser_it_draws_hovers_and_switches_without_errors(done, tmp_path):
    path, text = done
    driven = tmp_path / "report.html"
    unpaid = re.sub(r'("pretraining":{"pretrained":{[^}]*"seconds":)[0-9.]+', r"\1null", text)  # as of public weights
    driven.write_text(unpaid.replace("</body>", f"<script>{DRIVER}</script></body>"))
    page = in_chromium(driven, tmp_path)
    seen = json.loads(next(words for a, words in page.of("pre") if a.get("id") == "seen"))
    box, mask = final_scores(path, "box.AP"), final_scores(path, "mask.AP")
    arms = {
        a: json.loads((run_of(path, a, "6x").directory / "errors-1800.json").read_text())
        for a in ("pretrained", "scratch")
    }
    for value, kind, factor in (("lost", "box", 100), ("counts", "mask", 1)):
        field = {"lost": "gains", "counts": "counts"}[value]
        told = [[factor * (arms[a][kind][field][name] or 0) for name in ERROR_TYPES] for a in arms]
        assert [[v or 0 for v in trace] for trace in seen[value]] == [pytest.approx(t, abs=1e-3) for t in told]
    assert seen["mistake"].startswith("pretrained, classification: found, but called another classAP50 lost")
    assert seen["mains"] >= 6 and seen["traces"] == 16  # two charts; four trunk parts and four tails an arm
    assert seen["highest"] == pytest.approx(100 * max(v for (v,) in box.values()), rel=1e-5)
    assert seen["mask"] == pytest.approx(100 * max(v for (v,) in mask.values()), rel=1e-5)
    assert seen["tenth"] == pytest.approx(100 * max(v for (_, _, f), (v,) in mask.items() if f == 0.1), rel=1e-5)
    assert seen["hover"] == f"pretrained, trunkbox AP {100 * box_ap('pretrained', 1.0, 0, 100, False):.1f}step 100"
    assert seen["first"] == 900 * 8 + 100 * 8  # the pre-training's images, then the first evaluation
    assert seen["fewer"] == 6 and seen["ends"] == ["1x", "2x"]
    assert seen["alone"][:2] == ["12,000", "7,200"] and seen["spent"][0] != seen["alone"][0]
    assert 0 < seen["loss"] < 3
    assert seen["unpaid"] == [[], "training time, pre-training included, seconds (not known: pretrained)"]
    assert [words for _, words in page.of("th")].count(CLASSES[2]) == 2
