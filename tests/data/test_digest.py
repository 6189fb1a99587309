"""The digest of a data set's content: follows the bytes of its images, and reads them once."""

import os
import shutil

import pytest

from headstart.data import dataset
from headstart.data.dataset import cache_folder, data_digest, file_digests
from headstart.data.read import coco

OLD = 1_000_000_000 * 10**9  # ns: settled long ago


@pytest.fixture
def scenes(data_root, tmp_path):
    """A copy of the tiny scenes whose files are old enough to be remembered."""
    root = shutil.copytree(data_root / "scenes", tmp_path / "scenes")
    for path in (root / "val").iterdir():
        os.utime(path, ns=(OLD, OLD))
    return root


def read(root):
    return coco.read(root / "val.json", root / "val")


def test_a_copy_has_the_same_digest_and_other_pixels_do_not(scenes, tmp_path):
    data = read(scenes)
    before = data_digest(data)
    assert data_digest(read(shutil.copytree(scenes, tmp_path / "copy"))) == before
    image = scenes / "val" / data.file_names[0]
    changed = bytearray(image.read_bytes())
    changed[-1] ^= 1
    image.write_bytes(changed)  # the same size, other bytes, a new time
    assert data_digest(data) != before
    image.unlink()
    assert file_digests(data.image_dir, data.file_names)[0] == "absent"


def test_images_are_read_once(scenes, monkeypatch):
    data, read_files = read(scenes), []
    honest = dataset.hashlib.file_digest
    monkeypatch.setattr(
        dataset.hashlib, "file_digest", lambda file, kind: read_files.append(file) or honest(file, kind)
    )
    first = data_digest(data)
    assert len(read_files) == data.num_images > 0
    assert data_digest(data) == first and len(read_files) == data.num_images
    os.utime(scenes / "val" / data.file_names[1], ns=(OLD, OLD + 1))
    assert data_digest(data) == first and len(read_files) == data.num_images + 1


def test_a_file_changed_just_now_is_not_trusted(scenes):
    data = read(scenes)
    image = scenes / "val" / data.file_names[0]
    image.write_bytes(image.read_bytes())
    before = data_digest(data)
    status = image.stat()
    changed = bytearray(image.read_bytes())
    changed[-1] ^= 1
    image.write_bytes(changed)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))  # within one tick of a coarse clock
    assert data_digest(data) != before


def test_a_torn_cache_and_a_folder_that_cannot_be_written_are_no_trouble(scenes, monkeypatch, tmp_path):
    data = read(scenes)
    before = data_digest(data)
    for path in cache_folder().glob("images-*.json"):
        path.write_text(path.read_text()[:20])
    assert data_digest(data) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert data_digest(data) == before


def test_known_images_are_not_read_again(tmp_path, monkeypatch):
    names = tuple(f"{i:03d}.png" for i in range(300))
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(OLD, OLD))
    first = file_digests(tmp_path, names)
    monkeypatch.setattr("headstart.data.dataset.file_digest", None)
    assert file_digests(tmp_path, names) == first and len(set(first)) == 300
