# Two commands do all the set-up: `make demo` runs the main job on data inside a dependency, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# two processes of tests; one that is done takes tests from the other, from the end, so that both share few fixtures
TWO := --numprocesses 2 --dist worksteal

# fast tests of what is computed, over kernels and numbers of threads that round otherwise; SSE4_2 is where a constant unit of
# 1,000 once moved new features by 8. Waiting threads sleep, or two of them on busy cores would take minutes.
NUMERICS := $(addprefix tests/methods/erasers/test_,moments.py offsets.py oblique.py sharing.py esc.py cover.py retained_span.py) \
	tests/metrics/test_similarity.py tests/metrics/test_probes.py
KERNELS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE \
	MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_ENABLE_INSTRUCTIONS=SSE4_2

.PHONY: demo test test-fast test-kernels fuzz lint coverage test-lowest docs clean

demo: $(VENV)/.ready
	$(BIN)/hf-kd demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(TWO)

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest $(TWO) -m "not slow and not processes and not hub and not bench"

test-kernels: $(VENV)/.ready
	@for threads in 1 2; do for kernels in $(KERNELS); do \
		echo "$$kernels OMP_NUM_THREADS=$$threads"; \
		env $$kernels OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive \
			$(BIN)/python -m pytest --quiet -k "not mlp" $(NUMERICS) || exit 1; \
	done; done

# 5,000 mutations of saved folders, in at most 20 minutes: make fuzz FUZZ="--seed 3", or --only N for one of them again
fuzz: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py $(FUZZ)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell

coverage: $(VENV)/.ready
	$(BIN)/python -m pytest $(TWO) --cov --cov-report=term

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest $(TWO)

# the site, in docs/_build: its notebooks run, whatever is wrong is an error, nothing is fetched
docs: $(VENV)/.ready-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# torch first and alone: constrained to one version, so that nothing else chooses another build of it
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints.txt tools/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tools/lowest.py > $(LOWEST)/lowest.txt
	grep '^torch==' constraints.txt >> $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/lowest.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) hf-kd-demo docs/_build docs/_generated docs/reference/api build dist src/*.egg-info
