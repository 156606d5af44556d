# Two commands for a fresh machine: `make demo` and `make test`. Each builds the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUTPUT ?= out/demo
DIMENSIONS ?= 2
DEMO_OPTIONS ?=
BENCH_OPTIONS ?=
REPRODUCE_OPTIONS ?=
COMPARE_OPTIONS ?=
LABEL_VENV ?= .venv-label
LABEL_STAMP = $(LABEL_VENV)/.done-$(shell cat constraints-label.txt requirements-label.txt | cksum | cut -d' ' -f1)
LABEL_APP := out/label/app
STUDIES ?=
BUNDLE ?=
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: help setup demo test test-faults test-all lint format docs bench bundle reproduce compare label test-label label-serve clean

help:
	@echo "make demo [DATA=folder] [OUTPUT=out/demo] [DIMENSIONS=3]  scans to new slices, or volumes, ends with a report"
	@echo "make test      the tests (a few minutes)"
	@echo "make test-all  the tests, slow ones included"
	@echo "make test-faults  the tests that break things: kills, full disks, turned bits"
	@echo "make lint      format, lint and type checks"
	@echo "make docs      the documentation site, in out/site"
	@echo "make bench     the benchmarks, written to out/bench/results.json"
	@echo "make reproduce DATA=folder  train and evaluate the release again; goes on where it stopped"
	@echo "make compare DATA=folder    train designs of the autoencoder side by side; goes on where it stopped"
	@echo "make bundle    the bundle as the zip that MONAI downloads, in dist/"
	@echo "make label     the environment of MONAI Label, in $(LABEL_VENV)"
	@echo "make label-serve STUDIES=folder [BUNDLE=folder] [HOST=127.0.0.1] [PORT=8000]  the app behind a viewer"
	@echo "make test-label  the tests against a real MONAI Label server"
	@echo "make setup     the virtual environment alone"

$(VENV)/.done: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.done

# Threads that wait for each other stay awake: on shared cores a step of training is then up to five times as fast.
demo reproduce: export OMP_WAIT_POLICY := $(or $(OMP_WAIT_POLICY),ACTIVE)
demo: setup
	$(BIN)/python -m monai_vqgen demo $(if $(DATA),--data "$(DATA)") --output "$(OUTPUT)" $(if $(filter 3,$(DIMENSIONS)),--dimensions 3) $(DEMO_OPTIONS)

reproduce: setup
	$(BIN)/python -m tools reproduce --data "$(or $(DATA),$(error DATA=folder with the scans of ds002748))" --results docs/RESULTS.md --pictures docs/images $(REPRODUCE_OPTIONS)

compare: setup
	$(BIN)/python -m tools compare --data "$(or $(DATA),$(error DATA=folder with the scans of ds002748))" --results docs/RESULTS.md $(COMPARE_OPTIONS)

test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: setup
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m benchmarks --output out/bench/results.json $(BENCH_OPTIONS)

bundle: setup
	$(BIN)/python -m tools package_bundle --output dist

# MONAI Label goes in last and alone: its own list of requirements would have pip build sam2 with a second torch.
# The stamp goes by what the lists say, not by their dates: one environment outside can serve every fresh clone.
$(LABEL_STAMP):
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet --constraint constraints-label.txt --upgrade pip setuptools wheel
	$(LABEL_VENV)/bin/python -m pip install --quiet --constraint constraints-label.txt --requirement requirements-label.txt
	$(LABEL_VENV)/bin/python -m pip install --quiet --constraint constraints-label.txt --no-deps monailabel
	touch $@

label: $(LABEL_STAMP)
	$(LABEL_VENV)/bin/python -m pip install --quiet --constraint constraints-label.txt --editable .

test-label: label
	OMP_NUM_THREADS=1 $(LABEL_VENV)/bin/python -m pytest tests/label

# A folder of its own: MONAI Label writes logs and jobs into its app's folder, which an installed package must not hold.
label-serve: label
	mkdir -p $(LABEL_APP)
	cp monai_vqgen/monailabel/main.py $(LABEL_APP)/main.py
	$(LABEL_VENV)/bin/python -m monailabel.main start_server --app $(LABEL_APP) --studies "$(or $(STUDIES),$(error STUDIES=folder with scans))" \
		--host $(HOST) --port $(PORT) $(if $(BUNDLE),--conf bundle "$(abspath $(BUNDLE))")

clean:
	rm -rf $(VENV) $(LABEL_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
