# Two commands do everything on a fresh machine: `make demo` and `make test`. Both create their own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-slow lint format clean

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,train,demo,export]"
	touch $(STAMP)

demo: $(STAMP)  ## runs the main job on the embedded checkpoints and writes pictures to demo/
	$(BIN)/python -m hf_vistok.cli.main showcase --output demo

test: $(STAMP)  ## the whole suite but its slow tail
	$(BIN)/python -m pytest -m "not slow" -n 2 -q

test-slow: $(STAMP)  ## the slow tail: every stored weight matters, long trainings
	$(BIN)/python -m pytest -m slow -n 2 -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build *.egg-info
