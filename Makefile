# make train [ARGS="model=lenet data=mnist"]   set up, then train (linear regression on made-up data by default)
# make test  [ARGS="-m slow -n 0"]             set up, then run the tests, two at a time; -n 0: one after another
# make check                                   set up, then lint and types
# make results [ARGS="paths.data=FOLDER"]      set up, then train the books' experiments that docs/results/ lacks: hours
# make docs                                    set up, then build docs/_build/index.html
# make bench [ARGS="--quick mlp"]              set up, then measure speed (docs/measuring.md)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check docs bench results

train: .venv/run
	$(BIN)/python main.py $(ARGS)

# with bytecode kept, whatever the shell says: the tests start some hundred processes
test: .venv/dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: .venv/run
	$(BIN)/python -m benchmarks.ladder $(ARGS)

docs: .venv/dev
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

bench: .venv/bench
	$(BIN)/python -m benchmarks.run $(ARGS)

.venv/run: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}. Type: make PYTHON=python3.11 train")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: torch for NVIDIA GPUs and the rest, 5.7 GB, some minutes. For the CPU alone: docs/setup.md."
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt requirements-timm.txt requirements-table.txt requirements-export.txt requirements-docs.txt requirements-loggers.txt requirements-remote.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

.venv/bench: .venv/run benchmarks/requirements.txt
	$(BIN)/pip install -q -r benchmarks/requirements.txt
	touch $@
