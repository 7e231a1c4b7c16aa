# Two commands: `make demo` plays the whole job, `make test` runs the tests. Both set up what they need first.
# PYTHON=... chooses the interpreter for .venv, ARGS=... is handed on to the command.

PYTHON ?= python3
ARGS   ?=
BIN    := .venv/bin
# A Python that was named by hand decides; otherwise an environment that is there already is kept.
CHOSEN := $(if $(filter file default,$(origin PYTHON)),0,1)

# Scripts named play_* are sources to play, not measurements.
BENCHMARKS = $(filter-out benchmarks/play_%,$(wildcard benchmarks/*.py)) $(wildcard benchmarks/hud/run*.py) benchmarks/openigtlink/run.py benchmarks/openigtlink/codec.py $(addprefix benchmarks/registration/,rigid.py deformable.py multimodal.py slice.py ultrasound.py surface.py) $(addprefix benchmarks/ablation/,margin.py bioheat.py held_out.py published.py planning.py margin_chance.py)

.PHONY: help demo test test-registration test-others test-checked test-checked-registration setup lint bench clean bits
.DEFAULT_GOAL := help

help:
	@echo "make demo    play the whole job in the simulated room (window, or headless without a display)"
	@echo "make test    run the tests"
	@echo "make bits    whether freshly compiled kernels give the same bits as cached ones (minutes)"
	@echo "make setup   only create .venv with the pinned packages and check the system libraries"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   run the benchmarks"
	@echo "make clean   remove .venv, caches and build outputs"
	@echo "Options: PYTHON=/path/to/python3.12   ARGS='--duration 30'"

setup:
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) not found; on Debian: sudo apt-get install -y --no-install-recommends python3 python3-venv" >&2; exit 1; }
	@SETUP_PYTHON_CHOSEN=$(CHOSEN) $(PYTHON) scripts/setup_env.py

demo: setup
	@$(BIN)/ablation-nav demo $(ARGS)

# The twins run twice more: without the compiler (the kernels' Python is right) and with bounds checks (a compiled
# kernel reads garbage outside an array and says nothing). The checked code has a cache of its own, and is optimised less,
# which compiles faster. A simulator stands in for a GPU where the compiler is off. Compiling takes most of the time, so two
# parts run side by side, each kernel is compiled in one of them, and never on one cache; real windows and sockets come after
# them, with the machine to themselves.
TWINS := $(wildcard tests/reference/test_*.py)
REGISTRATION_TWINS := $(filter $(foreach of,deformable mutual_information rigid_image slice surface ultrasound,tests/reference/test_$(of)_%),$(TWINS))
REGISTRATION := $(wildcard tests/unit/test_regist*.py) $(REGISTRATION_TWINS)
CHECKED = NUMBA_BOUNDSCHECK=1 NUMBA_OPT=1 NUMBA_CACHE_DIR=.numba_cache/$@ $(BIN)/python -m pytest
INTERPRETED = NUMBA_DISABLE_JIT=1 NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest

ifeq ($(strip $(ARGS)),)
test: setup
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-registration test-others test-checked test-checked-registration
	$(BIN)/python -m pytest tests/hud tests/system
else
test: setup
	$(BIN)/python -m pytest $(ARGS)
endif

test-registration:
	NUMBA_CACHE_DIR=.numba_cache/$@ $(BIN)/python -m pytest $(REGISTRATION)

test-others:
	$(BIN)/python -m pytest $(addprefix --ignore=,tests/hud tests/system $(REGISTRATION))

test-checked:
	$(INTERPRETED) tests/reference
	$(CHECKED) $(filter-out $(REGISTRATION_TWINS),$(TWINS))

test-checked-registration:
	$(CHECKED) $(REGISTRATION_TWINS)

# Freshly compiled kernels against the same ones from the cache (minutes): see tests/cold_code.py.
bits: setup
	rm -rf .numba_cache/bits
	for run in cold warm; do KERNEL_BITS=.numba_cache/$$run.json NUMBA_CACHE_DIR=.numba_cache/bits \
	    $(BIN)/python -m pytest -p tests.cold_code tests/reference || exit 1; done
	$(BIN)/python tests/cold_code.py .numba_cache/cold.json .numba_cache/warm.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

clean:
	rm -rf .venv .setup.lock build dist *.egg-info .numba_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
