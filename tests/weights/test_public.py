"""Public weights: a truthful table, and a fetch that is verified and cleaned up after; here without network."""

import hashlib
import json
import re
import types
import urllib.error
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torchvision

from cli_call import call
from headstart.files import file_digest
from headstart.recipe.load import load_recipe, shipped
from headstart.weights import public
from headstart.weights.files import read_weights
from headstart.weights.load import load_weights, open_weights
from headstart.weights.public import fetch, find_file, find_on_disk, find_training, locate, public_files, trainings
from headstart.weights.public.fetch import download
from weight_nets import NARROW, resnet

RESNET = "torchvision/resnet18.imagenet1k_v1"


@pytest.fixture
def published(tmp_path):
    """A file as torchvision publishes it: the digits of its hash in its name."""
    path = tmp_path / "net.pth"
    torch.save(resnet(18, **NARROW).state_dict(), path)
    return path.rename(tmp_path / f"net-{file_digest(path)[:8]}.pth")


def test_table_is_complete_and_agrees_with_torchvision(tmp_path, monkeypatch):
    table = public_files()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert len(table) == 19
    for name, file in table.items():
        training = file.training
        assert training.licence and training.norm and training.kind in ("backbone", "detector")
        if name.startswith("torchvision/"):
            url = public.torchvision_url(file.location)
            model, version = name.removeprefix("torchvision/").split(".")
            enum = torchvision.models.get_model_weights(model)[version.upper()]
            assert url == enum.url and url.startswith("https://download.pytorch.org/")
            place = tmp_path / "checkpoints" / url.rpartition("/")[2]  # where torch.hub puts it
            place.touch()
            assert find_on_disk(file) == place
            place.unlink()
    assert find_file(RESNET).training.images_seen == 90 * 1_281_167
    with pytest.raises(ValueError, match=r"not known; the nearest is 'torchvision/resnet18\.imagenet1k_v1'"):
        find_file("torchvision/resnet18")


def test_a_study_may_name_a_training_or_one_of_its_files():
    detector = find_training("torchvision/maskrcnn_resnet50_fpn.coco_v1")
    assert detector is find_training("torchvision-maskrcnn-resnet50-v1") is trainings()[detector.name]
    # torchvision's references leave out the images of COCO that have no annotation
    assert detector.images_seen == 90 * 1_281_167 + 26 * 117_266
    assert detector.length() == "90 epochs of ImageNet, 26 epochs of COCO"
    with pytest.raises(ValueError, match=r"public_weights\.a\.name: 'timm-a4' is not known; the nearest is 'timm-a"):
        find_training("timm-a4", "public_weights.a.name")
    with pytest.raises(ValueError, match="the cost of 'timm-a1h' is not known, as its epochs are not published"):
        find_training("timm-a1h")


def test_fetched_file_is_verified_and_loads(tmp_path, published, monkeypatch, capsys):
    monkeypatch.setattr(public, "torchvision_url", lambda location: published.as_uri())
    fetched = download(RESNET, tmp_path / "mine.pth")
    assert fetched.verified and fetched.hash == file_digest(published) and fetched.path == tmp_path / "mine.pth"
    assert str(fetched) == f"{fetched.path}: sha256 {fetched.hash}, agrees with its publisher's hash"
    report = load_weights(resnet(18, **NARROW), read_weights(fetched.path), scope="backbone")
    assert report.hash == fetched.hash
    told = call(monkeypatch, capsys, "weights", "download", RESNET, tmp_path / "other.pth", "--json")
    assert json.loads(told.out) == {"file": str(tmp_path / "other.pth"), "sha256": fetched.hash, "verified": True}
    with pytest.raises(ValueError, match=r"mine\.pth: expected a new file with suffix \.pth"):
        download(RESNET, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pkl: expected a new file with suffix \.pth"):
        download(RESNET, tmp_path / "mine.pkl")


def test_wrong_hash_is_refused_and_removed(tmp_path, published, monkeypatch):
    wrong = published.rename(tmp_path / "net-00000000.pth")
    monkeypatch.setattr(public, "torchvision_url", lambda location: wrong.as_uri())
    with pytest.raises(
        ValueError, match=r"mine\.pth has sha256 \w+, expected 00000000 as at .*; it is removed, and the same"
    ):
        download(RESNET, tmp_path / "mine.pth")
    assert not (tmp_path / "mine.pth").exists()


def test_no_connection_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        ValueError, match=r"could not be fetched from resnet18 IMAGENET1K_V1 \(<urlopen error no route>\)"
    ):
        download(RESNET, tmp_path / "mine.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["right", "wrong", "absent"])
def test_detectron_file_is_checked_against_the_md5_beside_it(tmp_path, published, monkeypatch, digest):
    source = published.rename(tmp_path / "net.pkl")
    md5 = hashlib.md5(source.read_bytes() + (b"x" if digest == "wrong" else b"")).hexdigest()
    if digest != "absent":
        (tmp_path / "net.pkl.md5sum").write_text(f"{md5}  net.pkl\n")
    known = find_file("detectron/R-50-GN")
    assert known.location.startswith("https://dl.fbaipublicfiles.com/detectron/") and known.training.norm == "group"
    other = replace(known, location=source.as_uri())
    monkeypatch.setattr(fetch, "find_file", lambda name: other)
    if digest == "wrong":
        with pytest.raises(ValueError, match=r"mine\.pkl has md5 \w+, expected \w+ as at"):
            download("detectron/R-50-GN", tmp_path / "mine.pkl")
    else:
        assert download("detectron/R-50-GN", tmp_path / "mine.pkl").verified == (digest == "right")


def test_timm_file_comes_through_the_hub_client(tmp_path, published, monkeypatch):
    asked = []

    def fetch(repository, file):
        asked.append((repository, file))
        return str(published)

    etag = types.SimpleNamespace(etag=file_digest(published))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: etag)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    fetched = download("timm/resnet50_gn.a1h_in1k", tmp_path / "mine.safetensors")
    assert fetched.verified and asked == [("timm/resnet50_gn.a1h_in1k", "model.safetensors")]
    etag.etag = "0" * 64
    with pytest.raises(ValueError, match=r"expected 0000000000000000 as at .*; it is removed"):
        download("timm/resnet50_gn.a1h_in1k", tmp_path / "other.safetensors")
    link = tmp_path / "snapshot.safetensors"  # as the client's cache has it
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, file: str(link))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(link))
    published = published.rename(tmp_path / file_digest(published))
    link.symlink_to(published)
    assert locate("timm/resnet50_gn.a1h_in1k") == link
    published.write_bytes(published.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"has sha256 \w{16}, expected \w{16}: another version or a damaged file"):
        locate("timm/resnet50_gn.a1h_in1k")
    with pytest.raises(ValueError, match=r"expected 0000000000000000 as at .*; it is removed"):
        download("timm/resnet50_gn.a1h_in1k")
    assert not link.is_symlink() and not published.exists()


def test_weights_by_name_come_from_the_cache_of_their_client(tmp_path, published, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = published.rename(tmp_path / published.name.replace("net", "resnet18"))
    monkeypatch.setattr(public, "torchvision_url", lambda location: source.as_uri())
    with pytest.raises(
        ValueError, match=f"^weights '{RESNET}': not downloaded, .*: headstart weights download {RESNET}$"
    ):
        open_weights(RESNET)
    fetched = download(RESNET)
    assert fetched.verified and fetched.path == tmp_path / "hub/checkpoints" / source.name
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # it is not fetched again
    assert download(RESNET) == fetched
    assert open_weights(RESNET).hash == file_digest(source) and locate(source) == source
    fetched.path.write_bytes(fetched.path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"has sha256 \w+, expected \w{8}: another version or a damaged file; delete"):
        open_weights(RESNET)


def test_the_table_of_weights_that_fit_names_every_recipe_and_its_own_weights():
    """docs/starts.md: names exist, a recipe that names weights names these, and network and norm are the files'."""
    page = (Path(__file__).parents[2] / "docs/starts.md").read_text(encoding="utf-8")
    table = page.split("## Which weights fit which recipe")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    listed = {}
    for recipes, _, weights, fields in rows:
        names = [name for name in re.findall(r"`([^`]+)`", weights) if "/" in name and "…" not in name]
        assert set(names) <= set(public_files())
        for recipe in re.findall(r"`([^`]+)`", recipes):
            listed.setdefault(recipe, [])
            listed[recipe] += names if fields.startswith("none") else []
    others = [name for name in shipped() if not name.startswith("paper/") and not name.endswith("pretrain")]
    assert [name for name in others if name not in listed] == []
    for recipe, names in listed.items():
        found = load_recipe(recipe) if recipe != "any" else None
        if found and found.start.weights and not found.start.weights.startswith("data/"):
            assert names == [found.start.weights]
        fitting = [name for name in names if str(found.model.backbone.depth) in name]
        assert bool(fitting) == bool(names), recipe
        assert all(found.model.norm in public_files()[name].training.norm for name in fitting), recipe
