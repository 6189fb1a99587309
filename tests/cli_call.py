"""The command line as a user meets it: arguments in, exit code and both streams out, in this process."""

import sys
from dataclasses import dataclass

from headstart.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


def call(monkeypatch, capsys, *arguments) -> Answer:
    """Run `headstart ARGUMENTS` through its own entry point."""
    monkeypatch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code or 0
    said = capsys.readouterr()
    return Answer(code, said.out, said.err)
