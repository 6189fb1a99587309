"""YAML that is none, too much, or no file: one line naming the file or the override, at once."""

import os
import time
from contextlib import suppress

import pytest

from headstart.recipe.load import load_recipe
from headstart.recipe.yaml_text import MOST_BYTES, parse_override, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
DEEP = "".join(f"b{n}: &b{n} {'[' * 40}{f'*b{n - 1}' if n else 'x'}{']' * 40}\n" for n in range(100))
COLLIDING = [k * (2**61 - 1) for k in range(1, 10_000)]  # of one hash: a dict of them takes seconds
REFUSED = {
    "aliases": (BOMB, "line 5: more than 100,000 values, aliases written out"),
    "merges": (MERGES, "line 11: more than 100,000 values, aliases written out"),
    "deep": ("[" * 100_000, "line 1: nested more than 50 levels deep"),
    "deep mapping": ("".join(f"{' ' * n}a:\n" for n in range(500)), "nested more than 50 levels deep"),
    "deep by aliases": (DEEP, "line 2: nested more than 50 levels deep"),
    "recursive": ("a: &a [*a]", "line 1: *a stands for nothing that ends before it"),
    "colliding keys": (f"{{{COLLIDING[0]}: 0, {COLLIDING[1]}: 0}}", "line 1: 2305843009213693951 cannot be a key"),
    "surrogate": ('a: "\\ud800"', "line 1"),
    "tag": ("a: !!binary aGVsbG8=", "line 1: the tag 'tag:yaml.org,2002:binary', expected plain values"),
    "twice": ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: 'c' is given twice"),
    "list as key": ("? [a]\n: 1", "line 1: ['a'] cannot be a key"),
    "two documents": ("a: 1\n---\na: 2\n", "not valid YAML at line 2"),
    "control": ("a: \x01", "not valid YAML"),
    "list": ("[]", "expected a mapping of fields, found list"),
    "text": ("hello", "expected a mapping of fields, found str"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_in_a_file_at_once(tmp_path, kind):
    content, expected = REFUSED[kind]
    path, since = tmp_path / "mine.yaml", time.process_time()
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message, message
    assert len(message.splitlines()) == 1 and len(message) < 400 and time.process_time() - since < 1


def test_keys_of_one_hash_take_no_longer_than_others():
    def seconds(keys):
        text, found = "{" + ", ".join(f"{key}: 0" for key in keys) + "}", []
        for _ in range(3):
            since = time.process_time()
            with suppress(ValueError):
                parse_yaml(text, "mine.yaml")
            found.append(time.process_time() - since)
        return min(found)

    assert seconds(COLLIDING) < 2 * seconds(range(2**60 - 10_000, 2**60 - 1))


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path):
    for content, expected in (
        (b"\xff\xfe\x00a", "is not a text file, expected YAML"),
        ("größe: 1".encode("utf-16"), "is not a text file"),
        (b"#" * (MOST_BYTES + 1), "has more than 1,048,576 bytes"),
    ):
        (tmp_path / "mine.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=rf"mine\.yaml: {expected}"):
            read_yaml(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_bytes(b"a: 1\n" + b"#" * (MOST_BYTES - 5))
    assert read_yaml(tmp_path / "mine.yaml") == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "link.yaml", "folder.yaml", "/dev/zero", "/dev/stdin"):
        for reader in (read_yaml, load_recipe):
            with pytest.raises(ValueError, match=r"is a folder or a device, expected a YAML file"):
                reader(str(tmp_path / name))
    for name in ("loop.yaml", "nowhere.yaml", "a\0b", "x" * 10_000, f"{'x/' * 5000}"):
        with pytest.raises(ValueError, match="no such file or shipped name") as caught:
            load_recipe(name if "\0" in name or len(name) > 100 else tmp_path / name)
        assert len(str(caught.value)) < 1000


def test_aliases_and_merges_that_are_not_too_many_are_read():
    text = "base: &base {a: 1, b: {c: [1, 2]}}\nother:\n  <<: *base\n  a: 2\nagain: *base\n"
    assert read_yaml("x", text) == {
        "base": {"a": 1, "b": {"c": [1, 2]}}, "other": {"a": 2, "b": {"c": [1, 2]}},
        "again": {"a": 1, "b": {"c": [1, 2]}}
    }  # fmt: skip


@pytest.mark.parametrize("text", ["1:30", "190:20:30.15", "010", "0x1F", "0b1", "2026-01-01", "12e", "+", "."])
def test_text_that_yaml_1_1_takes_for_numbers(text):
    assert read_yaml("x", f"a: {text}") == {"a": text}


@pytest.mark.parametrize(("text", "value"), [("16", 16), ("-3", -3), ("1_000", 1000), ("0", 0), (".5", 0.5),
                                             ("1.", 1.0), ("1.5e3", 1500.0), ("-.inf", float("-inf"))])  # fmt: skip
def test_numbers_stay_numbers(text, value):
    found = read_yaml("x", f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


NO_YAML = [
    "[", "@x", "%", "\tx: 1", "{", "'", "*a", "!!python/name:os.system", "a: b: c", "\udcff", "\x00", "&a [*a]",
    "[" * 1000, "? [a]",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_YAML)
def test_overrides_that_are_no_yaml(value):
    with pytest.raises(ValueError) as caught:
        parse_override(f"train.rate={value}")
    message = str(caught.value)
    assert message.startswith("override ") and message.isprintable() and len(message) < 300


def test_values_of_any_length_are_shown_short():
    for value in ("9" * 5000, "x" * 5000, [1] * 5000, {"a": "b" * 5000}):
        with pytest.raises(ValueError, match=r"train\.batch") as caught:
            load_recipe("base", {"train.batch": value})
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()
    with pytest.raises(ValueError, match="unknown field") as caught:
        load_recipe("base", {"train." + "x" * 5000: 1, "a\nb": 2})
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match=r"has 5,001 parts, expected at most 20"):
        load_recipe("base", {".a" * 5000: 1})
