# Everything runs in .venv, which `make env` builds; it is quick when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow test-all test-oldest lint docs bench env tiny-model

demo: env
	$(BIN)/klball reproduce --preset tiny

test: env
	$(BIN)/python -m pytest -n 2

test-slow: env
	$(BIN)/python -m pytest -n 2 -m slow $(SLOW)

test-all: env
	$(BIN)/python -m pytest -n 2 -m ''

# the oldest versions that pyproject.toml admits, but for torch, in an environment of their own
test-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	sed -n '/^dependencies/,/^]/s/ *"\(.*\)>=\([^,"]*\).*",/\1==\2/p' pyproject.toml | grep -v '^torch=' > $(OLDEST)/versions.txt
	grep '^torch==' constraints.txt >> $(OLDEST)/versions.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/versions.txt --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest -n 2

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: env
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

tiny-model: env
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[tiny-model]'
	$(BIN)/python scripts/build_tiny_model.py

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("klball needs Python 3.11 or later: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
