# Everything works in .venv, which `make setup` makes and which depends on pyproject.toml only.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := $(shell find runtime-min -name '*.[ch]' -o -name 'CMakeLists.txt' -o -name '*.cmake')

SECONDS ?= 600

.PHONY: setup test bench fuzz demo lint format wheel clean

setup: .venv/setup-done $(BIN)/edgebuild-run

.venv/setup-done: pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) scripts/setup.sh
	@touch $@

# The native program itself; later builds find it in the cache.
$(BIN)/edgebuild-run: .venv/setup-done $(RUNTIME) edgebuild/stages/runtime.py edgebuild/core/zig.py
	@$(BIN)/edgebuild runtime -o $@
	@touch $@

test: setup
	@$(BIN)/python -m pytest

bench: setup
	@$(BIN)/python tests/benchmarks/bars.py

# libFuzzer on the native readers, SECONDS for each.
fuzz: setup
	@scripts/fuzz.sh $(SECONDS)

demo: setup
	@$(BIN)/edgebuild demo

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: setup
	@$(BIN)/python -m build --wheel

clean:
	rm -rf .venv build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
