"""What a user of another platform does, in a process where sitecustomize.py is in force: drive.py DATA OUT."""

import importlib
import pkgutil
import sys
from pathlib import Path

import headstart


def import_all() -> list[str]:
    """Import every module of the package; their names."""
    names = [module.name for module in pkgutil.walk_packages(headstart.__path__, "headstart.")]
    for name in names:
        importlib.import_module(name)
    return names


def main(data: Path, out: Path) -> None:
    """Import all, draw data on two processes, train on one and on two, run a study on two workers, report."""
    names = import_all()
    from headstart.data.shapes.write import generate
    from headstart.report.build import build_report
    from headstart.study.prepare import prepare
    from headstart.study.run import run_study
    from headstart.study.spec import parse_study
    from headstart.training.run import train
    from tiny import tiny_recipe, tiny_study

    generate(out / "scenes", 51, 51, 0, 32)
    alone = train(tiny_recipe(data, **TWO_STEPS), out / "alone")
    both = train(tiny_recipe(data, **TWO_STEPS, processes=2), out / "both")
    study = tiny_study(data, **CHANGES)
    directory = run_study(prepare(parse_study(study, source="tiny")), out, jobs=2)
    build_report(directory)
    assert all(name in sys.modules for name in names)
    print(len(names), alone.directory, both.directory)


TWO_STEPS = {"train__base": "1 steps", "train__warmup": "0 steps", "evaluate__every": "0 steps"}
CHANGES = {
    "arms": {"scratch": {"start.kind": "random"}, "other": {"start.kind": "random", "train.momentum": 0.8}},
    "schedules": ["1x"],
    "share": False,
    "pretrain": {},
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
