# Everything from nothing but python3 (3.11 or newer, with venv) and make.

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml and constraints.txt: nothing has to be installed.
INSTALLED := $(VENV)/installed
# The tests run in so many processes; 0: in one, so that a debugger can be used.
TEST_PROCESSES ?= $(shell count=$$(nproc 2>/dev/null || echo 2); test $$count -le 4 || count=4; echo $$count)
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-long up down bench lint clean

help:
	@echo 'make demo       an exam from heartbeat to merged video, on this machine, in about two minutes'
	@echo 'make up         start the system and leave it running; make down stops it'
	@echo 'make test       all tests; make test-long: also the long ones; TEST_PROCESSES=4: in so many processes'
	@echo 'make lint       ruff, mypy and the layers'
	@echo 'make bench      the benchmarks'

demo: $(INSTALLED)
	@$(BIN)/python -m demo

test: $(INSTALLED)
	@$(BIN)/python tests/servers/programs.py
	$(PYTEST) -m 'not long'

test-long: $(INSTALLED)
	@$(BIN)/python tests/servers/programs.py
	$(PYTEST)

up: $(INSTALLED)
	@$(BIN)/zq up

down: $(INSTALLED)
	@$(BIN)/zq down

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: down
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'zq needs Python 3.11 or newer. Found: '"$$(python3 --version 2>&1)"'.'; \
		echo 'Install one, or name it: make demo PYTHON=/path/to/python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || { echo 'making $(VENV) …'; $(PYTHON) -m venv $(VENV); }
	@echo 'installing what zq needs into $(VENV): a minute or two, once'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
