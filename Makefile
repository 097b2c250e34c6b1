# Each target does its own set-up and skips what is there. Needs Debian 12, root, and Debian's python3 (3.11) or newer.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard proto/kvorum/v1/*.proto)
STAMP := $(VENV)/.stamps

.PHONY: scenarios help demo test test-store test-ha check dev proto bench bench-ha bench-store sim sim-ha fault fault-ha clean system

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(STAMP)/dev ## three nodes, real guests, a live migration and a node's death (KEEP=1 leaves them up)
	$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

test: $(STAMP)/dev ## every test: unit, property, simulation, and clusters of real nodes
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)/dev $(STAMP)/buf ## format, lint, types, import contracts, proto lint, Vagrantfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.tools/node_modules/.bin/buf lint proto
	cd vagrant && VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate

dev: $(STAMP)/dev ## the whole set-up

proto: $(STAMP)/proto ## generate kvorum/v1 from proto/

sim: $(STAMP)/dev ## the store's consensus under virtual time and every fault: make sim SEEDS=500, make sim SEED=123 STEPS=5000
	$(BIN)/python tests/sim/raft/sim_run.py $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS)) $(if $(WITHOUT),--without "$(WITHOUT)") \
	    --seeds $(or $(SEEDS),10000) --first $(or $(FIRST),0)

sim-ha: $(STAMP)/dev ## HA under virtual time, on all cores: make sim-ha SEEDS=10000, make sim-ha SEED=17
	$(BIN)/python -m ha.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200) --first $(or $(FIRST),0)) $(if $(JOBS),--jobs $(JOBS))

scenarios: $(STAMP)/dev ## HA through timed events from a file: make scenarios FILE=scenarios.json OUT=outcomes.json
	$(BIN)/python -m ha.sim.scenarios $(FILE) $(OUT)

fault: $(STAMP)/dev ## real daemons under kills, freezes, cuts, full and slow disks, power loss: make fault MINUTES=1 NODES=5 SEED=7
	$(BIN)/python tests/fault/fault_run.py --minutes $(or $(MINUTES),10) --nodes $(or $(NODES),3) $(if $(SEED),--seed $(SEED))

fault-ha: $(STAMP)/dev ## a lab's node with guests killed, cut off, frozen, without storage: make fault-ha ROUNDS=2 PROFILE=fast SEED=7
	$(BIN)/python tests/fault_ha/fault_ha_run.py --rounds $(or $(ROUNDS),10) --profile $(or $(PROFILE),both) $(if $(SEED),--seed $(SEED))

test-store: $(STAMP)/dev ## every test of the store, to the simulation and three real daemons
	$(BIN)/python -m pytest tests/unit/raft tests/unit/clusterfs tests/property tests/stock tests/sim/raft \
	    tests/fault $(wildcard tests/cluster/test_store_*.py) tests/cluster/test_log_on_ext4.py $(ARGS)

test-ha: $(STAMP)/dev ## every test of HA, to the models, simulations, scenarios and a lab of three real nodes
	$(BIN)/python -m pytest tests/unit/ha $(wildcard tests/property/test_ha_*.py) tests/unit/agent_core/test_agent_core_ha.py \
	    tests/unit/cli/test_cli_ha.py tests/unit/lab/test_lab_single_run.py tests/unit/lab/test_lab_watchdog.py \
	    tests/sim/ha tests/sim/scenarios tests/fault_ha tests/cluster/test_ha_lab.py $(ARGS)

bench: $(STAMP)/dev ## measure against peers
	$(BIN)/python -m bench

bench-ha: $(STAMP)/dev ## what a quiet HA writes to the disks, on three nodes: make bench-ha ARGS="--profile fast --seconds 60"
	$(BIN)/python -m bench.ha_idle $(ARGS)

bench-store: $(STAMP)/dev ## the store against its bars and etcd, about 15 minutes: make bench-store ARGS="--only commit,failover"
	tools/system-setup bench
	$(BIN)/python -m bench.store $(ARGS)

clean: ## remove what was built here, and a lab that was left up
	-[ -x $(BIN)/kvorum ] && $(BIN)/kvorum lab down
	rm -rf $(VENV) .tools kvorum/v1 *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

system: $(STAMP)/system

# The stamps lie in the virtual environment, so that a fresh one is set up from the start. What is installed already is
# asked of the system, not of a stamp: tools/system-setup returns at once when nothing is missing.
$(STAMP)/system: tools/system-setup | $(VENV)
	tools/system-setup
	@mkdir -p $(@D)
	@touch $@

$(VENV):
	@command -v $(PYTHON) >/dev/null || tools/system-setup
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/system-setup
	$(PYTHON) -m venv $(VENV)

# --group needs a newer pip than Debian 12 has.
$(STAMP)/packages: pyproject.toml $(STAMP)/system
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@mkdir -p $(@D)
	@touch $@

$(STAMP)/proto: $(PROTOS) $(STAMP)/packages
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:. \
	    --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:. $(PROTOS)
	@echo '"""Messages and services, generated from proto/ by make proto; not to be edited."""' >kvorum/v1/__init__.py
	@mkdir -p $(@D)
	@touch $@

$(STAMP)/dev: $(STAMP)/proto
	@mkdir -p $(@D)
	@touch $@

# The npm package carries buf's binary. Not --prefix: npm then looks for the machine's own settings below that folder.
$(STAMP)/buf: $(STAMP)/packages
	tools/system-setup check
	mkdir -p .tools && echo '{}' >.tools/package.json
	cd .tools && npm install --no-save --no-fund --no-audit --loglevel=error @bufbuild/buf@1.75.0
	@mkdir -p $(@D)
	@touch $@
