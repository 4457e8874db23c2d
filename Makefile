# make quickstart | test | test-all | lint | docs | wheel | bench | accelerator     (PYTHON=python3.13 ...)
PYTHON ?= python3
VENV ?= .venv$(if $(filter python3,$(PYTHON)),,-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
WORKERS ?= 2

.PHONY: quickstart test test-all lint format docs wheel bench accelerator

$(VENV)/run: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python >= 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@echo "Installing into $(VENV): 1.2 GB on disk, a minute of processor time and the downloads"
	@# Without the whole of pip the making was interrupted; venv completes it.
	@$(BIN)/python -c 'from importlib.metadata import version; version("pip")' >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/docs: docs/requirements.txt $(VENV)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

quickstart: $(VENV)/run
	@echo "Training two models of 0.3 million parameters, and evaluating 18 files of them: five minutes of one core's time, less with more cores; less than 20 MB in $(WORKDIR)"
	$(BIN)/python -m experiments.main --config=configs/quickstart.py --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow" $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Into build/site; a warning, such as a broken link, is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What an index would get, and a check of its metadata.
wheel: $(VENV)/dev
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(BIN)/twine check --strict build/wheel/*.whl

# Of the files and of accuracy: on the models that `make quickstart` trained.
bench: $(VENV)/dev
	$(BIN)/python -m experiments.bench.moments
	$(BIN)/python -m experiments.bench.optimizer
	$(BIN)/python -m experiments.bench.update --config=configs/quickstart.py
	$(BIN)/python -m experiments.bench.growth
	$(BIN)/python -m experiments.bench.scaling
	$(BIN)/python -m experiments.bench.coding $(WORKDIR)
	$(BIN)/python -m experiments.bench.quantizers $(WORKDIR)/normal

# What needs a GPU, in a given time; the same command goes on. ACCELERATOR is
# the requirement that makes JAX use it.
ACCELERATOR ?= .[cuda]
accelerator: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(ACCELERATOR)"
	$(BIN)/python -m experiments.accelerator $(ARGS)
