# Two commands do all the set-up: `make demo` runs the main job on data inside a dependency, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.ready
	$(BIN)/hf-kd demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch first and alone: constrained to one version, so that nothing else chooses another build of it
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) hf-kd-demo build dist src/*.egg-info
