# Everything one does with this tree goes through here: `make help`.
SHELL := /bin/sh
.DEFAULT_GOAL := help

ifeq ($(shell id -u),0)
MNT   ?= /mnt/orbit
STATE ?= /var/lib/orbit
else
MNT   ?= $(HOME)/orbit
STATE ?= $(HOME)/.local/share/orbit
endif
SOCKET  ?=
CONFIG  ?=
ARGS    ?=
PREFIX  ?= /usr/local
# Where mount(8) looks for helpers; nowhere else.
HELPER_DIR ?= /sbin

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
TESTED := $(VENV)/.test-tools
LOCKS  := requirements-build.lock requirements.lock requirements-dev.lock
CODE   := blockstore ghostd syncer cli orbit_paths.py orbit_socket.py

.PHONY: help setup setup-test mount unmount test test-systemd lint format check bench soak \
        docs locks install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: MNT=$(MNT) STATE=$(STATE) SOCKET= CONFIG= PREFIX=$(PREFIX)"

setup: $(STAMP) ## Debian packages and the Python environment in .venv

$(STAMP): $(LOCKS) pyproject.toml scripts/system-packages scripts/make-venv
	@scripts/system-packages build
	@scripts/make-venv $(VENV) requirements-build.lock requirements-dev.lock --editable
	@touch $@

setup-test: $(TESTED) ## the programs that the tests drive (fio, rsync, git, …)

$(TESTED): $(STAMP) scripts/system-packages tests/servers/package-lock.json
	@scripts/system-packages test
	@npm ci --silent --prefix tests/servers
	@touch $@

mount: $(STAMP) ## start the daemon in the background: MNT= STATE= SOCKET= CONFIG=
	@$(BIN)/python -m ghostd.launch --mount "$(MNT)" --state "$(STATE)" \
	    $(if $(SOCKET),--socket "$(SOCKET)") $(if $(CONFIG),--config "$(CONFIG)")

unmount: $(STAMP) ## stop it: flush, commit, unmount
	@scripts/unmount "$(MNT)" $(BIN)/orbit-ctl $(if $(SOCKET),--socket "$(SOCKET)")

test: $(TESTED) ## the tests, on real mounts too; ARGS= goes to pytest
	@$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

test-systemd: $(TESTED) ## the units under a real systemd as PID 1 (root)
	@$(BIN)/pytest -m systemd tests/systemd $(ARGS)

lint: $(STAMP) ## format, ruff, mypy, import layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(STAMP) ## let ruff format and fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

check: lint test ## lint and test

bench: $(TESTED) ## measurements against the references: BENCH=seq,small,... QUICK=1 ROUNDS=3
	@$(BIN)/python -m tests.bench $(if $(BENCH),--groups $(BENCH)) $(if $(QUICK),--quick) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

soak: $(TESTED) ## the long runs: thousands of crashes
	@$(BIN)/pytest -m soak $(ARGS)

docs: $(STAMP) ## rewrite docs/configuration.md from the table of knobs
	@$(BIN)/python -m ghostd.config > docs/configuration.md

locks: $(STAMP) ## renew the lock files within the ranges of pyproject.toml
	@scripts/renew-locks

install: ## daemon, orbit-ctl, units and mount helper under PREFIX (root)
	@scripts/system-packages build
	@scripts/install "$(PREFIX)" "$(HELPER_DIR)"

uninstall: ## remove what install put there; the stored data stays
	@scripts/install --remove "$(PREFIX)" "$(HELPER_DIR)"

clean: ## remove what was built here; the stored data stays
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	    .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
