# Two commands do all the set-up: `make demo` runs the main job on data inside a dependency, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo test test-fast lint coverage test-lowest clean

demo: $(VENV)/.ready
	$(BIN)/hf-kd demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow and not processes and not hub and not bench"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell

coverage: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-report=term

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest --numprocesses 2

# torch first and alone: constrained to one version, so that nothing else chooses another build of it
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints.txt tools/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tools/lowest.py > $(LOWEST)/lowest.txt
	grep '^torch==' constraints.txt >> $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/lowest.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) hf-kd-demo build dist src/*.egg-info
