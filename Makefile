# Everything runs in .venv, made from requirements.lock on first use; later calls install nothing.
# A smaller torch without CUDA: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

# vLLM's CPU build and the project, in an environment of their own: vLLM pins other versions than requirements.lock.
ENGINES := .venv-engines
ENGINES_STAMP := $(ENGINES)/.installed

.PHONY: setup setup-engines study smoke real test test-slow rehearse-all test-gpu test-engines check docs bench clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; run make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "making $(VENV) from requirements.lock (a few minutes, about 2 GB without CUDA)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) torch==2.13.0)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
	@echo "installed; the command is $(BIN)/transfer"

setup-engines: $(ENGINES_STAMP)

$(ENGINES_STAMP): requirements-engines.lock pyproject.toml .ci/vllm-stub/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; run make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "making $(ENGINES) from requirements-engines.lock (a few minutes, about 3.3 GB)"
	@test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	@$(if $(TORCH_INDEX),$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) torch==2.13.0)
	@$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-engines.lock
	@$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps ./.ci/vllm-stub
	@$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
	@echo "installed; the command is $(ENGINES)/bin/transfer"

# The pages of docs/ as a site with search: site/index.html. It opens without a network.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo "built site/index.html"

.venv-docs/.installed: requirements-docs.lock
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

study: setup
	$(BIN)/transfer run recipes/pocket/study.yaml

smoke: setup
	$(BIN)/transfer run recipes/pocket/smoke.yaml

# The comparison on a real language model (docs/smollm2.md): hours on two CPU cores.
#   make real MODEL=DIR DATA=FOLDER       without a network: a local model, and its data under their publishers' names
#   make real ENGINE=hf                   evaluated with transformers in place of vLLM's CPU build, slower
MODEL ?=
DATA ?=
ENGINE ?= vllm
SMOLLM2 := recipes/smollm2-135m
ifeq ($(ENGINE),vllm)
REAL := $(ENGINES)/bin/transfer run $(SMOLLM2)/matched.yaml suite.engine='{kind: vllm, eager: true}'
else ifeq ($(ENGINE),hf)
REAL := $(BIN)/transfer run $(SMOLLM2)/matched.yaml
else
$(error ENGINE is $(ENGINE); it can be hf or vllm)
endif
real: setup $(if $(filter vllm,$(ENGINE)),setup-engines)
	$(BIN)/python $(SMOLLM2)/prepare.py $(if $(DATA),--from $(DATA))
	$(if $(MODEL),,$(BIN)/transfer fetch $(SMOLLM2)/warm_start.yaml)
	$(BIN)/transfer run $(SMOLLM2)/warm_start.yaml $(if $(MODEL),model.path=$(MODEL))
	$(REAL)

# Processes that run tests. The files that need no finished study come first: the studies are made meanwhile.
TEST_PROCESSES ?= 2
BY_FILE := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest $(BY_FILE)

test: setup
	$(PYTEST)

# Slurm, DeepSpeed, a browser, rehearsals, kills and full disks, the commands of the docs.
SLOW ?= slow
test-slow: setup
	$(PYTEST) -m "$(SLOW)"

# The large recipes at toy size, with the CPU build of vLLM where `make setup-engines` has installed it.
LARGE := qwen3-1.7b/matched llama-3.1-8b/matched qwen3-8b/ablation qwen3-14b/matched qwen3-14b/paper released/qwen3-14b
rehearse-all: setup
	@for name in $(LARGE); do \
	  $(firstword $(wildcard .venv-engines/bin) $(BIN))/python -m launch rehearse recipes/$$name.yaml \
	    --ranks 2 --synthetic-data $(REHEARSE) || exit 1; \
	done

test-gpu: setup
	$(BIN)/pytest -m gpu

# vLLM on a CPU, without compilation. An engine that is bound takes the first core, as the one beside it does.
test-engines: setup-engines
	TORCH_COMPILE_DISABLE=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	  VLLM_CPU_OMP_THREADS_BIND=nobind $(ENGINES)/bin/python -m pytest -m engines $(BY_FILE) tests/engines

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python tests/bench/commands.py

clean:
	rm -rf $(VENV) $(ENGINES) .venv-docs site build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
