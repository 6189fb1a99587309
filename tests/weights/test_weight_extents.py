"""Weight files whose tensors are not in them, that grow when read, or that never end: refused at once, in one line."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from headstart.weights import pickles
from headstart.weights.files import MOST_HEADER, read_weights


def refusal(path):
    """The message of a file that is refused within a second or so."""
    since = time.process_time()
    with pytest.raises(ValueError) as error:
        read_weights(path)
    message = str(error.value)
    assert time.process_time() - since < 2 and message.startswith(f"{path}: ") and message.isprintable(), message
    return message


def written(path, content):
    path.write_bytes(content)
    return path


def saved(content, *, archive=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def edited(content, *, compression=zipfile.ZIP_STORED, drop=(), **members):
    """A file of torch.save with some members replaced: bytes, or pairs of bytes to exchange in them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            change = members.get(name.replace(".", "_").replace("/", "_"), b"")
            data = old.read(info)
            if isinstance(change, tuple):
                assert data.count(change[0]) == 1, (name, data)
                data = data.replace(*change)
            if name not in drop:
                new.writestr(info.filename, change if change and isinstance(change, bytes) else data)
    return buffer.getvalue()


MIXED = {
    "state_dict": OrderedDict(
        a=torch.arange(12.0).reshape(3, 4),
        half=torch.arange(6).half(),
        brain=torch.linspace(0, 1, 5).bfloat16(),
        whole=torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        flag=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        byte=torch.arange(9, dtype=torch.uint8)[2:7:2],
        imaginary=torch.tensor([1 + 2j]),
    ),
    "epoch": 3,
    "rest": [1.5, None, True, (2, "x"), {"y": b"z"}, {7}, torch.float32, torch.Size([2, 3]), torch.device("cpu")],
}


@pytest.mark.parametrize("archive", [True, False])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path, archive):
    content = MIXED | {
        "state_dict": MIXED["state_dict"]
        | {"small": torch.arange(9.0).to(torch.float8_e5m2 if archive else torch.int8)}
    }
    path = written(tmp_path / "a.pth", saved(content, archive=archive))
    theirs = torch.load(path, weights_only=True)["state_dict"]
    ours = read_weights(path).tensors
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        assert ours[name].stride() == value.stride() or not value.numel(), name
        assert torch.equal(
            ours[name].contiguous().view(-1).view(torch.uint8), value.detach().contiguous().view(-1).view(torch.uint8)
        ), name


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_that_share_a_storage_share_it_again(tmp_path, archive):
    whole = torch.arange(10.0)
    path = written(
        tmp_path / "a.pth", saved({"whole": whole, "part": whole[4:8], "every": whole[1::3]}, archive=archive)
    )
    tensors = read_weights(path).tensors
    tensors["whole"].neg_()
    assert tensors["part"].tolist() == [-4, -5, -6, -7] and tensors["every"].tolist() == [-1, -4, -7]


def test_uint16_is_read_though_torch_has_no_storage_of_its_own_for_it(tmp_path):
    path = written(tmp_path / "a.pth", saved({"a": torch.arange(6).to(torch.uint16).reshape(2, 3)}))
    assert read_weights(path).tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


SIZE, STRIDE, COUNT = b"K\x03K\x04\x86", b"K\x04K\x01\x86", b"cpuq\x05K\x0ctq"
GRID = torch.arange(12.0).reshape(3, 4)
EXTENTS = {
    "more rows": (SIZE, b"K\x04K\x04\x86"),
    "many rows": (SIZE, b"J\xff\xff\xff\x7fK\x04\x86"),
    "negative": (SIZE, b"J\xff\xff\xff\xffK\x04\x86"),
    "huge": (SIZE, b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x04\x86"),
    "beyond 64 bits": (SIZE, b"\x8a\x09" + b"\xff" * 8 + b"\x7fK\x04\x86"),
    "one side": (SIZE, b"K\x0c\x85"),
    "text": (SIZE, b"K\x03X\x01\x00\x00\x004\x86"),
    "long stride": (STRIDE, b"K\x05K\x01\x86"),
    "negative stride": (STRIDE, b"J\xff\xff\xff\xffK\x01\x86"),
    "truth": (STRIDE, b"K\x04\x88\x86"),
}


@pytest.mark.parametrize("case", EXTENTS)
@pytest.mark.parametrize("archive", [True, False])
def test_tensors_must_lie_in_their_storage(tmp_path, case, archive):
    content = saved({"a": GRID}, archive=archive)
    old, new = EXTENTS[case]
    if archive:
        content = edited(content, data_pkl=(old, new))
    else:
        assert content.count(old) == 1
        content = content.replace(old, new)
    assert "not a readable torch file (a " in refusal(written(tmp_path / "a.pth", content))


def test_a_repeated_element_is_no_tensor_of_a_gigabyte(tmp_path):
    content = edited(saved({"a": GRID}), data_pkl=(STRIDE, b"K\x00K\x00\x86"))
    content = edited(content, data_pkl=(SIZE, b"J\x00\x00\x00\x10K\x04\x86"))
    assert "in 12 elements" in refusal(written(tmp_path / "a.pth", content))


def test_a_storage_must_be_whole(tmp_path):
    content = saved({"a": GRID})
    for change in ({"data_0": bytes(44)}, {"data_0": bytes(52)}, {"data_0": bytes(47)}):
        assert "not a readable torch file" in refusal(written(tmp_path / "a.pth", edited(content, **change)))
    assert "not a readable torch file" in refusal(written(tmp_path / "a.pth", edited(content, drop=("data/0",))))
    assert "not a readable torch file" in refusal(written(tmp_path / "a.pth", edited(content, drop=("data.pkl",))))
    old = saved({"a": GRID}, archive=False)
    for cut in (1, 47, 48, 55, 56, 100):
        assert "not a readable torch file" in refusal(written(tmp_path / "a.pth", old[:-cut]))
    place = len(old) - 56  # before the storage's number of elements
    assert struct.unpack("<q", old[place : place + 8]) == (12,)
    for count in (-1, 0, 11, 13, 2**62):
        content = old[:place] + struct.pack("<q", count) + old[place + 8 :]
        assert "has not its 12 elements" in refusal(written(tmp_path / "a.pth", content))


def test_a_storage_of_more_elements_than_the_file_is_refused_before_it_exists(tmp_path):
    old = saved({"a": GRID}, archive=False)
    wide = old.replace(b"K\x0cN", b"\x8a\x05\x00\x00\x00\x00\x01N")  # 2**32 elements, 16 GiB
    assert wide != old
    assert "more than the file holds" in refusal(written(tmp_path / "a.pth", wide))


def test_compressed_members_are_refused(tmp_path):
    content = edited(saved({"a": torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 10**5
    assert "is compressed" in refusal(written(tmp_path / "a.pth", content))


def test_a_flipped_bit_is_found(tmp_path):
    content = bytearray(saved({"a": torch.zeros(1000)}))
    content[len(content) // 2] ^= 4
    assert "Bad CRC-32" in refusal(written(tmp_path / "a.pth", bytes(content)))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
ARRAY = RECONSTRUCT + b"K\x00\x85U\x01b\x87R"
ELEMENT = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
A = b"\x80\x02}X\x01\x00\x00\x00a"  # the start of {"a": …}
NESTED = b"".join(b"q\x000(" + b"h\x00" * 9 + b"t" for _ in range(40))  # a tuple of 9 tuples of 9 … after the first
BOMBS = {
    "47 bytes": A + b"cnumpy\nndarray\nJ\x00\x00\x00\x20\x85Rs.",
    "empty array": A + RECONSTRUCT + b"J\x00\x00\x00\x20\x85" + ELEMENT + b"\x87Rs.",
    "few bytes": A + ARRAY + b"(K\x01J\x00\x00\x00\x20\x85" + ELEMENT + b"\x89U\x04abcdtbs.",
    "no size": A + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + ELEMENT + b"\x89U\x04abcdtbs.",
    "memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f",
    "long bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x08\x00\x00\x00",
    "long byte array": b"\x80\x05\x96\x00\x00\x00\x00\x08\x00\x00\x00",
    "frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
    "tuple as key": b"\x80\x02})" + NESTED + b"K\x01s.",
    "tuple of tuples as name": b"\x80\x04)" + NESTED + b"\x8c\x01a\x93.",
    "list as content": b"\x80\x02]" + NESTED.replace(b"(", b"](").replace(b"t", b"e") + b".",
    "author": b"\x80\x02}(X\x05\x00\x00\x00modelU\x01ax",
    "state of a function": b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
    "state of a class": b"\x80\x02cnumpy\ndtype\nN}X\x09\x00\x00\x00set_stateK\x01s\x86b.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02K\x01Q.",
    "instance": b"(ios\nsystem\n.",
    "copies": b"\x80\x02](" + b"N" * 200_000 + b"eq\x00" + b"0c__builtin__\nset\nh\x00\x85R" * 10_000 + b".",
    "long integer": b"I" + b"9" * 5000 + b"\n.",
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_pickles_that_grow_are_refused_at_once(tmp_path, case, suffix):
    content = BOMBS[case] if suffix == ".pkl" else edited(saved({}), data_pkl=BOMBS[case])
    refusal(written(tmp_path / f"a{suffix}", content))


def test_instructions_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    assert "more than 1,000 instructions" in refusal(written(tmp_path / "a.pkl", b"\x80\x02" + b"N0" * 1000 + b"}."))


def test_many_arrays_of_the_same_bytes_are_refused(tmp_path):
    start = b"\x80\x02}(U\x01xT" + struct.pack("<i", 400_000) + bytes(400_000) + b"q\x00"
    array = ARRAY + b"(K\x01J\xa0\x86\x01\x00\x85"
    entries = b"".join(b"U\x03%03d" % n + array + ELEMENT + b"\x89h\x00tb" for n in range(200))
    assert "arrays of more bytes than the file holds" in refusal(written(tmp_path / "a.pkl", start + entries + b"u."))
    few = start + b"U\x01a" + array + ELEMENT + b"\x89h\x00tbu."
    assert read_weights(written(tmp_path / "a.pkl", few)).tensors["a"].shape == (100_000,)


def test_an_author_is_text_or_none(tmp_path):
    array = pickle.dumps(np.ones(2, np.float32), 2)
    start = b"\x80\x02}(U\x0a__author__)" + NESTED + b"U\x05model}U\x01a"
    content = start + array[2:-1] + b"su."
    file = read_weights(written(tmp_path / "a.pkl", content))
    assert file.author == "" and file.tensors["a"].tolist() == [1, 1]


def test_a_pickle_of_python_2_and_of_another_byte_order(tmp_path):
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    big = b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"\x80\x02}U\x01a" + ARRAY + b"(K\x01K\x02K\x03\x86" + ELEMENT + big + b"\x89U\x18"
    content += values.tobytes() + b"tbs."
    assert read_weights(written(tmp_path / "a.pkl", content)).tensors["a"].tolist() == values.tolist()


def test_names_in_messages_are_shown_on_one_line(tmp_path):
    refusal(written(tmp_path / "a.pkl", pickle.dumps({"a\nb\x1b[31m": 1})))
    refusal(written(tmp_path / "a.pkl", b"\x80\x04\x8c\x03o\ns\x8c\x04\x1b[2Js\x93."))


def header(tensors, length=None):
    text = json.dumps(tensors).encode() if isinstance(tensors, dict) else tensors
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "beyond the file": header({"a": TENSOR | {"shape": [4], "data_offsets": [0, 16]}}) + bytes(8),
    "another size": header({"a": TENSOR | {"shape": [3]}}) + bytes(8),
    "overlap": header({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}) + bytes(12),
    "the same place": header({"a": TENSOR, "b": TENSOR}) + bytes(8),
    "a gap": header({"a": TENSOR | {"data_offsets": [4, 12]}}) + bytes(12),
    "bytes after": header({"a": TENSOR}) + bytes(9),
    "backwards": header({"a": TENSOR | {"data_offsets": [8, 0]}}) + bytes(8),
    "negative": header({"a": TENSOR | {"shape": [-2]}}) + bytes(8),
    "huge shape": header({"a": TENSOR | {"shape": [2**33, 2**33]}}) + bytes(8),
    "unknown type": header({"a": TENSOR | {"dtype": "F33"}}) + bytes(8),
    "header beyond the file": header({"a": TENSOR}, 1000) + bytes(8),
    "header too large": header({"a": TENSOR}, MOST_HEADER + 1) + bytes(8),
    "header of 2**63": header({"a": TENSOR}, 2**63) + bytes(8),
    "no JSON": header(b"\xff" * 20),
    "deep JSON": header(b"[" * 100_000),
    "empty": b"",
    "short": b"\x08\x00",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_safetensors_are_checked(tmp_path, case):
    assert "not a readable safetensors file" in refusal(written(tmp_path / "a.safetensors", HEADERS[case]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_only_regular_files_are_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    os.mkfifo(path)
    assert refusal(path) == f"{path}: is a pipe: expected a regular file"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert refusal(path) == f"{path}: is a device: expected a regular file"
    path.unlink()
    path.mkdir()
    assert refusal(path) == f"{path}: is a folder: expected a regular file"
