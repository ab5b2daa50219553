# Two commands do all the set-up: `make app` and `make test`. Both are quick the second time.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?= engram
# A process a core and one more, since many tests wait for a child process or a browser; groups of
# tests to each (tests/conftest.py), torch on one thread in each.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count()) + 1)")
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=10
export MYPYPATH := .mypy_cache/src

.PHONY: app demo test test-all check format bench clean

## Open the explorer on a model that needs no network (MODEL=folder for your own).
app: $(STAMP)
	$(BIN)/mnemoscope app $(MODEL)

## Score heads, prune some, reload, compare: a table and a figure path.
demo: $(STAMP)
	$(BIN)/mnemoscope demo

## Formatting, lint, types, import contract, then the tests of a bare machine.
test: check
	$(PYTEST) -m "not slow and not gpu"

## Everything that this machine can run, longer versions of some tests too.
test-all: check
	$(PYTEST) -m "not gpu"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(MYPYPATH) && ln -sfn "$(CURDIR)" $(MYPYPATH)/mnemoscope
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	for script in hook_overhead path_patching path_patching_memory head_scoring prune_checkpoint average_precision attention_rows streaming_cache suffix_index sharded_index engines offload; do $(BIN)/python benchmarks/$$script.py --write; done

# The environment is made again when what it is made from changes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
