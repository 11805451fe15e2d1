# All that a contributor needs. `make run` and `make test` install what they need into .venv first.
PYTHON ?= python3
VENV   ?= .venv
RANKS  ?= 3
BIN    := $(VENV)/bin

# As root, and with more ranks than cores, Open MPI wants to be asked explicitly.
CORES := $(shell nproc 2>/dev/null || echo 1)
MPIRUN = $(BIN)/mpirun $(if $(filter 0,$(shell id -u)),--allow-run-as-root) $(if $(shell [ $(1) -gt $(CORES) ] && echo y),--oversubscribe) -n $(1)

.PHONY: help install run test test-mpi lint types imports pages check bench docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(VENV)/.installed  ## a virtual environment with everything

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[all]'
	@touch $@

run: install  ## train on handwritten digits under mpirun (RANKS=3)
	$(call MPIRUN,$(RANKS)) $(BIN)/python -m federation.launch --set overwrite=true

test: install  ## every test, three files at a time: half of their time they wait
	$(BIN)/python -m pytest -rs -n 3 --dist loadfile --no-loadscope-reorder

test-mpi: install  ## the transport's tests under mpirun (RANKS=3)
	$(call MPIRUN,$(RANKS)) $(BIN)/python -m pytest -p no:cacheprovider --only-mpi tests/node_comm

lint: install  ## ruff
	$(BIN)/ruff check .

types: install  ## mypy, strict for node_comm and federation.core
	$(BIN)/mypy

imports: install  ## the layers: launch > builtin > node > core, data, infra; node_comm knows no federation
	$(BIN)/lint-imports --no-cache

pages: install  ## the pages that `make docs` writes are current
	$(BIN)/python -m pytest tests/test_cases.py tests/test_config_reference.py

check: lint types imports pages  ## lint, types, imports and pages

bench: install  ## the quick benchmarks, as tables
	$(BIN)/python benchmarks/bench_kernels.py
	$(BIN)/python benchmarks/bench_local_step.py
	$(BIN)/python benchmarks/bench_overhead.py
	$(BIN)/python benchmarks/bench_columnwise.py

docs: install  ## the reference pages that are made from the code
	$(BIN)/python -m federation.config_reference
	$(BIN)/python -m federation.component_reference
	$(BIN)/python -m tests.cases

clean:  ## forget builds and caches (not runs/)
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
