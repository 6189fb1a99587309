"""Names from users' files reach the terminal as they are, but for what it would obey, which is shown escaped."""

import json

import pytest
from rich.progress import Progress

from cli_call import call
from headstart.cli import console
from headstart.version import __version__

# Sets the title of the window, clears the screen, turns the writing, begins a line, ends a command (C1).
HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\u202edog\r\x9bm"
ESCAPED = r"cat\x1b]0;owned\x07\x1b[2J\u202edog\r\x9bm"
PLAIN = "[bold]:smile: 犬 é[/bold] 1.5 'x' https://a.b"


@pytest.mark.parametrize(("text", "expected"), [(HOSTILE, ESCAPED), (PLAIN, PLAIN), ("a\tb\\x1b", r"a\tb\x1b")])
def test_lines_tables_and_errors(capsys, text, expected):
    console.say(f"{text}\n{text}")
    assert capsys.readouterr().out == f"{expected}\n{expected}\n"
    console.show(text, [text], [[text], [None]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [expected] * 3
    with pytest.raises(SystemExit):
        console.fail(f"{text}\nheadstart: all is well", 2)
    assert capsys.readouterr().err == rf"headstart: {expected}\nheadstart: all is well" + "\n"


def test_a_lone_surrogate_of_a_file_name_is_shown(capsys):
    console.say("photo\udcff.jpg")
    assert capsys.readouterr().out == "photo\\udcff.jpg\n"


def test_a_bar_takes_no_markup(monkeypatch):
    monkeypatch.setattr(console.err, "_force_terminal", True)
    with console.bar() as progress:
        assert isinstance(progress, Progress)
        task = progress.add_task(PLAIN, total=1, note=PLAIN)
        shown = [column.render(progress.tasks[task]).plain for column in (progress.columns[0], progress.columns[-1])]
    assert shown == [PLAIN, PLAIN]


def test_a_class_name_in_a_data_set(monkeypatch, capsys, data_root, tmp_path):
    content = json.loads((data_root / "scenes/val.json").read_text())
    content["categories"][0]["name"] = HOSTILE
    (tmp_path / "val.json").write_text(json.dumps(content))
    answer = call(monkeypatch, capsys, "data", "stats", tmp_path / "val.json", "--images", data_root / "scenes/val")
    assert answer.code == 0 and ESCAPED in answer.out and "\x1b" not in answer.out
    answer = call(monkeypatch, capsys, "data", "stats", tmp_path / f"{HOSTILE}.json")
    assert answer.code == 2 and ESCAPED in answer.err and "\x1b" not in answer.err and answer.err.count("\n") == 1


def test_the_version_is_printed(monkeypatch, capsys):
    answer = call(monkeypatch, capsys, "--version")
    assert (answer.code, answer.out, answer.err) == (0, f"headstart {__version__}\n", "")
