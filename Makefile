# make demo, make test and make check set themselves up: Python 3.11 or newer with pip is all they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
TESTS := FITWITHIN_CACHE="$(abspath $(VENV))/test-cache" $(BIN)/python -m pytest
BESIDE := -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: help demo test soak check browser clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the complete flow on scanned digits, on the CPU, in 75 s (demo-run/)"
	@echo "make test    make check, then the tests"
	@echo "make soak    the long series: hundreds of kills, every law ten times as often, the whole demo (an hour)"
	@echo "make check   ruff check, ruff format --check, mypy"
	@echo "make clean   remove what these made"

demo: $(STAMP)
	$(BIN)/python -m fitwithin demo --out demo-run

test: check browser
	$(TESTS) $(BESIDE) -m "not timed and not soak"; beside=$$?; \
	if command -v nvidia-smi >/dev/null; then $(TESTS) -m "timed and not soak" || exit; fi; exit $$beside

soak: $(STAMP)
	FITWITHIN_TRIES=10 $(TESTS) $(BESIDE) --timeout 3000 -m "soak or hypothesis"

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# The report is looked at in a browser; without one that test skips with a reason. Only CI may install one, as root.
browser:
	@if [ "$$CI" = true ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	  || echo "chromium could not be installed; the browser test will skip"; \
	fi

# Debian's Python may come without ensurepip: then the system's pip installs one into the environment.
# Dependency groups need pip 25.1.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fitwithin needs Python 3.11 or newer, " + sys.executable + " is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	  && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable ".[demo]" --group dev
	@touch $@

clean:
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
