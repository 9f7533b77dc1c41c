# Every target does its own set-up; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --durations=25 --durations-min=1
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := -c constraints.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo sweep-demo test test-unit test-slow test-cluster test-oldest test-newest lock lint types format clean

setup: $(STAMP)

# Exact versions with hashes; nothing is resolved here, and this package is built by what the lock
# installed. pip's own notices are left out (-qq), its errors are not.
$(STAMP): requirements.lock pyproject.toml
	@echo "set-up 1/3  virtual environment $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV) || { echo "set-up failed at 1/3: needs Python 3.11 to 3.13 with venv (Debian: apt-get install python3-venv); another one: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" || { echo "set-up failed at 1/3: needs Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.12"; exit 1; }
	@echo "set-up 2/3  the packages of requirements.lock (1 to 5 minutes, 6 GB)"
	@$(PIP) install -qq --require-hashes -r requirements.lock || { echo "set-up failed at 2/3: pip says why above. No network or a full disk are the usual causes; a second 'make setup' starts over"; exit 1; }
	@echo "set-up 3/3  this package"
	@$(PIP) install -qq --no-deps --no-build-isolation -e . || { echo "set-up failed at 3/3: pip says why above"; exit 1; }
	@$(BIN)/python -c "import torch, torchvision, torchaudio, ray, mlflow" || { echo "set-up failed at 3/3: this platform is none of the lock's (Linux on x86-64 or ARM, macOS on ARM): pip install -e '.[dev]' resolves anew"; exit 1; }
	@touch $(STAMP)

lock: setup  ## Renews requirements.lock and cluster/requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --upgrade --extra dev $(LOCK) -o requirements.lock
	cp requirements.lock cluster/requirements.lock  # uv keeps the versions that an output file names
	$(BIN)/uv pip compile pyproject.toml --extra optuna --extra cluster --extra encoders $(LOCK) -o cluster/requirements.lock

demo: setup  ## The main job on embedded data: table, report, MLflow store
	$(BIN)/uml compare shapes

sweep-demo: setup  ## Which mix of modalities: 8 configurations x 3 seeds, confirmed on 5 others
	$(BIN)/uml sweep shapes --space modality_ratio sweep.trials=7 seeds=[0,1,2] \
		train.steps=200 train.validate_every=20 train.lr=5.0e-3

# Budgets (tests/support/budget.py) fail what takes too long; UML_TEST_BUDGET_FACTOR=2 on a machine
# half as fast.
test: test-unit  ## All tests but the slow ones
	$(PYTEST) -m "ray and not slow and not cluster"

test-unit: setup  ## Tests without Ray
	$(PYTEST) -q -n 2 -m "not ray and not slow and not cluster"

test-slow: setup  ## Faults, whole sweeps, several hosts
	$(PYTEST) -m "slow and not cluster"

test-cluster: setup  ## Many hosts, `ray up` over sshd, PostgreSQL, S3 (root, Debian packages)
	$(PYTEST) -s -m cluster

test-oldest: setup  ## Unit tests on the lower ends of pyproject.toml's ranges (downloads its own set)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct -e ".[dev]"
	.venv-oldest/bin/python -m pytest -q -n 2 -m "not ray and not slow"

test-newest: setup  ## Unit tests on their upper ends
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-newest
	$(BIN)/uv pip install --quiet --python .venv-newest --upgrade -e ".[dev]"
	.venv-newest/bin/python -m pytest -q -n 2 -m "not ray and not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
