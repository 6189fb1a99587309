"""The digest of a data set's content: follows the bytes of its images, and reads them once."""

import json
import os
import shutil

import pytest

from headstart.data import digests
from headstart.data.digests import cache_folder, data_content, file_states, refuse_changed
from headstart.data.read import coco

OLD = 1_000_000_000 * 10**9  # ns


def data_digest(data, **options):
    return data_content(data, **options).digest


@pytest.fixture
def settled(monkeypatch):
    """Files written just now count as old enough to be remembered."""
    monkeypatch.setattr(digests, "SETTLED", 0.0)


@pytest.fixture
def scenes(data_root, tmp_path, monkeypatch):
    """A copy of the tiny scenes, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = shutil.copytree(data_root / "scenes", tmp_path / "scenes")
    for path in (root / "val").iterdir():
        os.utime(path, ns=(OLD, OLD))
    return root


def read(root):
    return coco.read(root / "val.json", root / "val")


def flip_a_bit(path):
    """Another content under the same size and time of change, as `rsync -t` leaves it."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


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
    assert file_states(data.image_dir, data.file_names)[0].digest == "absent"


def test_images_are_read_once(scenes, settled, monkeypatch):
    data, read_files = read(scenes), []
    honest = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: read_files.append(path) or honest(path))
    first = data_digest(data)
    assert len(read_files) == data.num_images > 0
    assert data_digest(data) == first and len(read_files) == data.num_images
    os.utime(scenes / "val" / data.file_names[1], ns=(OLD, OLD + 1))
    assert data_digest(data) == first and len(read_files) == data.num_images + 1


def test_a_change_that_keeps_size_and_time_is_seen(scenes, settled):
    data = read(scenes)
    before = data_digest(data)
    flip_a_bit(scenes / "val" / data.file_names[0])
    assert data_digest(data) != before


def test_rehash_sees_a_change_that_left_no_trace(scenes, settled):
    """A flipped bit of a failing disk: here the remembered digest is that of other content, all else as it is."""
    data = read(scenes)
    true = data_digest(data)
    (path,) = cache_folder().glob("images-*.json")
    entries = json.loads(path.read_text())
    entries[data.file_names[0]][-1] = "0" * 32
    path.write_text(json.dumps(entries))
    stale = data_digest(data)
    assert stale != true
    assert data_digest(data, rehash=True) == true == data_digest(data)


def test_a_file_changed_just_now_is_not_trusted(scenes):
    data = read(scenes)
    image = scenes / "val" / data.file_names[0]
    image.write_bytes(image.read_bytes())
    before = data_digest(data)
    flip_a_bit(image)  # perhaps within one tick of a coarse clock
    assert data_digest(data) != before


def test_files_that_changed_since_are_refused_by_content(scenes):
    data = read(scenes)
    files = data_content(data).files
    first, second, *_ = (scenes / "val" / name for name in data.file_names)
    os.utime(first)
    shutil.copy(second, second.with_suffix(".new"))
    second.with_suffix(".new").replace(second)  # another file of the same content
    refuse_changed(files)
    flip_a_bit(second)
    with pytest.raises(ValueError, match=rf"{second}: has other content than when this run began") as error:
        refuse_changed(files)
    assert "\n" not in str(error.value)
    flip_a_bit(second)
    refuse_changed(files)
    first.unlink()
    with pytest.raises(ValueError, match=rf"{first}: is gone"):
        refuse_changed(files)


def test_a_torn_cache_and_a_folder_that_cannot_be_written_are_no_trouble(scenes, settled, monkeypatch, tmp_path):
    data = read(scenes)
    before = data_digest(data)
    for path in cache_folder().glob("images-*.json"):
        text = path.read_text()
        for damaged in (text[:20], text.replace("[", "{"), '{"a.jpg": [1, 2, "x"]}', '{"a.jpg": [1, 2, 3, 4, 5]}'):
            path.write_text(damaged)
            assert data_digest(data) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert data_digest(data) == before


def test_known_images_are_not_read_again(tmp_path, settled, monkeypatch):
    names = tuple(f"{i:03d}.png" for i in range(300))
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    first = file_states(tmp_path, names)
    monkeypatch.setattr(digests, "file_digest", None)
    assert file_states(tmp_path, names) == first and len({state.digest for state in first}) == 300
