# Everything on a fresh machine: `make reproduce` and `make test`. Only Python 3.11 or newer is needed.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo yes),$(p))))
VENV ?= .venv
RUNS ?= runs/reproduce
PRESET ?= cpu
BIN := $(VENV)/bin
# glibc keeps memory that a training step frees, instead of mapping it anew at every step; other
# allocators ignore it, and no result depends on it (docs/speed.md).
KEEP_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-modes lint docs notebooks clean

help:
	@echo "make reproduce   the study in miniature, 8 to 12 minutes on two cores; PRESET=tiny: a minute"
	@echo "make test        the test suite; TESTS=PATH: a part of it"
	@echo "make lint        ruff and pyright"
	@echo "make docs        the documentation as a site"
	@echo "make notebooks   executes colab/ and writes it back"

reproduce: $(VENV)/experiments.installed
	$(KEEP_MEMORY) $(BIN)/python -m experiments.reproduce --config=configs/reproduce.py:$(PRESET) --workdir=$(RUNS)

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# Modes of jax that users switch on, one at a time, over the quick tests of what computes.
MODES := JAX_ENABLE_X64=1 JAX_DEBUG_NANS=1 JAX_DEFAULT_MATMUL_PRECISION=bfloat16 \
         JAX_NUMPY_RANK_PROMOTION=raise JAX_NUMPY_DTYPE_PROMOTION=strict
MODE_TESTS ?= $(addprefix tests/test_,generate.py attention.py loss.py loop.py rotary.py)

test-modes: $(VENV)/test.installed
	for mode in $(MODES); do echo $$mode; env $$mode $(BIN)/python -m pytest -q -m "not slow" $(MODE_TESTS) || failed="$$failed $$mode"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

lint: $(VENV)/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site: build/site/index.html"

# Executes every notebook of colab/ in full and writes it back.
notebooks: $(VENV)/notebooks.installed
	JAX_PLATFORMS=cpu $(BIN)/python -m colab.build

# One stamp per extra, remade when setup.cfg changes.
$(VENV)/%.installed: setup.cfg
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found: install one, or make PYTHON=/path/to/python" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) $(RUNS)
