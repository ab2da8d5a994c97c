# make train       set up, then train a small Mixer on the bundled digits (about two minutes)
# make test        set up, then run the linter and the tests
# make test-slow   the tests that take minutes
# make test-timm   the tests against timm's models
# make docs        the documentation as a site, in site/; a broken link is an error
# make notebook    run docs/tour.ipynb and keep its outputs
# With another interpreter: make train PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits

.PHONY: train test test-slow test-timm docs notebook lint format lock clean

train: $(VENV)/installed
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# PyTorch and timm are installed into a separate environment.
test-timm: .venv-timm/installed
	.venv-timm/bin/python -m pytest -m timm

# The search needs a server: .venv-docs/bin/mkdocs serve.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

notebook: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint requirements-docs.txt nbconvert ipykernel
	$(BIN)/jupyter nbconvert --execute --to notebook --inplace \
	  --ExecutePreprocessor.record_timing=False docs/tour.ipynb

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes the newest versions that pyproject.toml allows on Python 3.11 to 3.13 to requirements.txt.
lock: $(VENV)/installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra test --upgrade \
	  --no-emit-index-url --no-annotate --no-header --output-file requirements.txt pyproject.toml

# Makes the environment of $@ again from nothing if its set-up was interrupted, which leaves packages
# that pip cannot read.
define begin-set-up
$(PYTHON) -m venv $(if $(wildcard $(@D)/interrupted),--clear) $(@D)
touch $(@D)/interrupted
endef

define end-set-up
rm $(@D)/interrupted
touch $@
endef

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "Python 3.11 to 3.13 is needed, and " + sys.executable + " is " + sys.version.split()[0] + \
	  ": make PYTHON=python3.12")'
	$(begin-set-up)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(end-set-up)

.venv-timm/installed: requirements.txt requirements-timm.txt
	$(begin-set-up)
	.venv-timm/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-timm.txt
	$(end-set-up)

.venv-docs/installed: requirements-docs.txt
	$(begin-set-up)
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	$(end-set-up)

clean:
	rm -rf $(VENV) .venv-timm .venv-docs runs site
