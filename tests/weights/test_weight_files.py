"""Weight files: read without executing anything; damaged ones are named in one line."""

import io
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from headstart.weights.files import read_weights


class Payload:
    """What an attacker would pickle: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pkl"])
def test_pickle_payload_is_refused_and_not_executed(tmp_path, suffix):
    mark = tmp_path / "executed"
    content = {"model": {"conv1.weight": np.zeros(3, np.float32)}, "note": Payload(mark)}
    path = tmp_path / f"evil{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"w": torch.zeros(1), "note": Payload(mark)}, path)
    with pytest.raises(ValueError, match=rf"evil\{suffix}: refused, because it asks for \w+\.open") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark))).close()  # it would have worked
    assert mark.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.f2py.crackfortran.myeval", "_codecs.encode"])
def test_array_unpickler_refuses_every_other_name(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = tmp_path / "x.pkl"
    path.write_bytes(f"c{module}\n{function}\n(S'print(1)'\nS'rot13'\ntR.".encode())
    with pytest.raises(ValueError, match=rf"refused.*{re.escape(name)}"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_survive_every_pickle_protocol(tmp_path, protocol):
    arrays = OrderedDict(
        a=np.arange(12, dtype=np.float32).reshape(3, 4),
        b=np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        c=np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(1, 0, 2),
        d=np.float32(2.5),
    )
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    file = read_weights(tmp_path / "x.pkl")
    assert file.left_out == ("d",)
    for name in "abc":
        assert np.array_equal(file.tensors[name].numpy(), arrays[name])
        assert file.tensors[name].numpy().dtype == arrays[name].dtype


def test_objects_hidden_in_an_array_are_no_tensors(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.array([{}, None], dtype=object), "b": np.ones(2)}))
    file = read_weights(tmp_path / "x.pkl")
    assert list(file.tensors) == ["b"] and file.left_out == ("a",)


def bad_files(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    program = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), program)
    contents = {
        "program.pt": (program.getvalue(), "it is a TorchScript program, expected a state dict"),
        "torn.pth": (buffer.getvalue()[:-2000], "not a readable torch file"),
        "torn.safetensors": (b"\x10\x00\x00\x00", "not a readable safetensors file"),
        "torn.pkl": (b"\x80\x04\x95", "not a readable pickle of arrays"),
        "empty.pth": (b"", "not a readable torch file"),
        "list.pkl": (pickle.dumps([1, 2]), "holds a list, expected a mapping"),
        "plain.pkl": (pickle.dumps({"epoch": 3}), r"holds no tensors \(found: epoch\)"),
        "net.onnx": (b"x", r"unknown suffix '\.onnx'.*\.safetensors, \.pt"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        yield tmp_path / name, message
    yield tmp_path / "absent.pth", "no such weight file"


@pytest.mark.filterwarnings("ignore:.*TorchScript|.*torch.jit")
def test_bad_files_are_one_line_that_names_them(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(
            ValueError, match=f"{re.escape(path.name)}: .*{message}|{re.escape(path.name)}: {message}"
        ) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value), path
