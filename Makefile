# Every target does its own set-up; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --durations=25 --durations-min=1
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo sweep-demo test test-unit test-slow test-cluster lint types format clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev,optuna]"
	touch $(STAMP)

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
	$(BIN)/python -m pip install --quiet -e ".[dev,optuna,cluster]"
	$(PYTEST) -s -m cluster

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
