# warpsmith: every target is a line or two over cargo. `make help` lists them.

.DEFAULT_GOAL := build
SHELL := /bin/bash

CARGO ?= cargo
BUILD := build
VENV ?= $(BUILD)/venv
OUT ?= out/stories

# MPI is built in where it can be; MPI=0 goes without, MPI=1 insists. The same throughout, so that cargo builds things once.
MPI ?=
WITH_MPI = features=$$(dev/find_mpi.sh "$(MPI)") &&

.PHONY: help build train train_gpt2 train_gpt2cu warpsmith nvcc kernels-check kernels-budget kernels-clocks test lint fmt bench bench-quick gpu-report gpu-report-programs parity venv clean

help: ## this list
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-20s %s\n", $$1, $$2}'

build: .cargo-found ## ./train_gpt2 and ./warpsmith, optimised
	@$(WITH_MPI) $(CARGO) build --release --locked --bins $$features
	@cp -f target/release/train_gpt2 target/release/warpsmith .

.cargo-found:
	@command -v $(CARGO) >/dev/null || { echo "warpsmith needs Rust 1.91 or newer: install it from https://rustup.rs, then open a new shell" >&2; exit 2; }
	@command -v cc >/dev/null || { echo "warpsmith needs a C compiler to link: apt install gcc (or xcode-select --install)" >&2; exit 2; }
.PHONY: .cargo-found

train_gpt2 warpsmith: .cargo-found
	@$(WITH_MPI) $(CARGO) build --release --locked --bin $@ $$features
	@cp -f target/release/$@ $@

.nvcc-found:
	@dev/setup_nvcc.sh --unless-found
	@command -v "$${NVCC_CCBIN:-g++}" >/dev/null || { echo "nvcc needs a C++ compiler: apt install g++" >&2; exit 2; }
.PHONY: .nvcc-found

train_gpt2cu: .cargo-found .nvcc-found ## ./train_gpt2cu, with kernels for GPUs; installs nvcc where there is none
	@$(WITH_MPI) REQUIRE_KERNELS=1 $(CARGO) build --release --locked --bin $@ $$features
	@cp -f target/release/$@ $@

nvcc: ## NVIDIA's compiler (13.0, pinned) and disassembler, into build/cuda
	@dev/setup_nvcc.sh

# --- the main job: make train [TEXT=file.txt] [OUT=dir] [STEPS=n]. Interrupt it and run it again: it goes on.

TEXT ?=
STEPS ?= 1800
STORY_TOKENS ?= 6000000
ifeq ($(TEXT),)
DATA := $(BUILD)/stories
PREFIX := stories
else
ifneq ($(words $(TEXT)),1)
$(error TEXT=$(TEXT): expected one path without spaces; use ./warpsmith data and ./train_gpt2 for more)
endif
# The name and a checksum of the whole path, so that two files of one name do not meet.
PREFIX := $(basename $(notdir $(TEXT:/=)))-$(firstword $(shell printf %s "$(abspath $(TEXT))" | cksum))
DATA := $(BUILD)/text-$(PREFIX)
ifeq ($(OUT),out/stories)
OUT := out/$(PREFIX)
endif
endif
PROMPT ?= Once upon a time
# bf16 where it is multiplied in hardware; the start-up table says which type that is.
DTYPE ?= auto
# A GPU is used if there is one, and a compiler for its kernels or a way to get it; GPU= goes without.
GPU ?= $(shell nvidia-smi -L 2>/dev/null | grep -q . && echo yes)
ifneq ($(GPU),)
GPU := $(if $(filter train,$(MAKECMDGOALS)),$(shell dev/setup_nvcc.sh --unless-found >&2 && echo yes))
endif
ifneq ($(GPU),)
TRAINER := train_gpt2cu
SHAPE ?= --layers 6 --heads 6 --channels 384 -b 16 -t 256 -l 1e-3
else
# A model that two cores train in minutes: 7.3 million parameters, most of them the embedding.
TRAINER := train_gpt2
SHAPE ?= --layers 4 --heads 4 --channels 128 -b 4 -t 256 -l 3e-3
endif
TRAIN_FLAGS ?= $(SHAPE) -u 60 -q 0.05 -c 0.1 -v 200 -m 16 -s 500 -g 200 --sample-temperature 0.7

$(BUILD)/text-$(PREFIX)/$(PREFIX)_train_000001.bin: $(TEXT) | build
	./warpsmith data "$(TEXT)" -o $(BUILD)/text-$(PREFIX) --name "$(PREFIX)" --force

train: build $(TRAINER) $(DATA)/$(PREFIX)_train_000001.bin ## train a small model on built-in stories (or TEXT=file.txt), then plot and sample
	./$(TRAINER) -i '$(DATA)/*_train_*.bin' -j '$(DATA)/*_val_*.bin' -o $(OUT) -y 1 -n 200 -nk 2 --dtype $(DTYPE) $(TRAIN_FLAGS) --prompt "$(PROMPT)" -x $(STEPS)
	./warpsmith plot $(OUT)
	./warpsmith sample --model $(OUT) --prompt "$(PROMPT)" --temperature 0.7 --max-tokens 300 --dtype $(DTYPE)

# --- comparisons with PyTorch (dev only; sets up its own virtual environment under build/)

venv:
	@dev/setup_venv.sh $(VENV)

STORIES := $(BUILD)/stories/stories_train_000001.bin
$(STORIES): | build
	./warpsmith stories -o $(BUILD)/stories --tokens $(STORY_TOKENS) --force

parity: build venv $(STORIES) ## loss and norm beside PyTorch and Hugging Face, 20 steps
	$(VENV)/bin/python dev/parity.py --data '$(STORIES)' $(PARITY_FLAGS)

# Where there is a GPU, ours and the fastest of PyTorch at the batch of the published runs; else both on the CPU.
GPU := $(shell command -v nvidia-smi)
BENCH := $(VENV)/bin/python dev/bench.py --data '$(STORIES)' -e d12
# A CPU that does not multiply bf16 in hardware refuses it, and it is left out.
CPU_BENCH := $(BENCH) --ours 'f32=./train_gpt2 --dtype f32' --ours-optional 'bf16=./train_gpt2 --dtype bf16' \
	--torch f32:eager --torch f32:compile --torch bf16:eager --torch bf16:compile

bench: build $(if $(GPU),train_gpt2cu) venv $(STORIES) ## time a 124M step beside PyTorch, on a GPU each kernel too; recorded in benches/record
ifneq ($(GPU),)
	$(BENCH) --ours './train_gpt2cu -r 0' -b 64 -t 1024 -d 524288
	$(VENV)/bin/python dev/bench_attention.py -e d12,d24,d36,d48 -b 64 -t 1024 --out $(BUILD)/peers.json
	$(WITH_MPI) REQUIRE_KERNELS=1 $(CARGO) bench --locked --bench kernels $$features -- --peers $(BUILD)/peers.json
else
	$(CPU_BENCH) -b 4 -t 64
	$(CPU_BENCH) -b 1 -t 1024
endif

bench-quick: .cargo-found ## every benchmark at tiny sizes, so that none rots
	$(WITH_MPI) WARPSMITH_BENCH_QUICK=1 $(CARGO) bench --locked --bench matmul $$features
	$(WITH_MPI) $(CARGO) test --locked --bench kernels $$features

# --- what wants a GPU: all of it in one folder, by programs that can be carried to a machine without cargo

# Without MPI, which the other machine may not have, unless MPI=1 says otherwise.
# KERNEL_ARCHES=90a, for one sort of GPU, keeps the archive small; REPORT_PROFILE=dev takes the programs that the tests use;
# SANITIZER=1 adds compute-sanitizer for a machine that has none; PACK=0 packs fast, not small.
REPORT_PROFILE ?= release
PACK ?= 6
# Beside build/gpu, what the report reads: its scripts, golden files, the sources that tests of the probes look into, and counts.
REPORT_FILES := dev kernels/ptx.cuh kernels/hopper.cuh tests/probes benches/record/emulated

gpu-report-programs: .cargo-found .nvcc-found ## what `make gpu-report` runs, for a machine without cargo: build/gpu.tar.xz
	@features=$$(dev/find_mpi.sh "$(or $(MPI),0)") && REQUIRE_KERNELS=1 $(CARGO) build --profile $(REPORT_PROFILE) --locked --bins $$features
	@mkdir -p $(BUILD)/gpu
	@cp -f $(addprefix target/$(if $(filter dev,$(REPORT_PROFILE)),debug,$(REPORT_PROFILE))/,train_gpt2 train_gpt2cu warpsmith) $(BUILD)/gpu/
	@features=$$(dev/find_mpi.sh "$(or $(MPI),0)") || exit; \
	built() { $(CARGO) test --profile $(REPORT_PROFILE) --locked --no-run $$features "$$@" 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p'; }; \
	set -e; for name in kernels probes; do cp -f "$$(built --test $$name)" $(BUILD)/gpu/$$name; done; \
	cp -f "$$(built --bench kernels)" $(BUILD)/gpu/bench
	@$(if $(SANITIZER),dev/setup_sanitizer.sh $(BUILD)/gpu)
	@for name in train_gpt2 train_gpt2cu warpsmith kernels probes bench; do strip $(BUILD)/gpu/$$name || exit; done
	@git describe --always --dirty > $(BUILD)/SOURCE 2>/dev/null || echo unknown > $(BUILD)/SOURCE
	@tar -c --exclude=__pycache__ $(BUILD)/gpu $(REPORT_FILES) -C $(BUILD) SOURCE | xz -T0 -$(PACK) > $(BUILD)/gpu.tar.xz
	@echo "$(BUILD)/gpu.tar.xz: $$(du -m --apparent-size $(BUILD)/gpu.tar.xz | cut -f1) MiB"

gpu-report: gpu-report-programs ## what wants a GPU, on this machine's: tests, parity, steps, kernels; one page of it in build/gpu-report
	dev/gpu_report.sh $(BUILD)/gpu-report

# --- checks

test: .cargo-found ## all tests
	$(WITH_MPI) $(CARGO) test --locked $$features

kernels-check: .cargo-found .nvcc-found ## every kernel compiles for every architecture: no spills, the registers and instructions of kernels/budget.tsv, the predicted clocks of kernels/clocks.tsv
	$(WITH_MPI) REQUIRE_KERNELS=1 $(CARGO) test --locked --test kernel_build $$features -- --nocapture

kernels-budget: .cargo-found nvcc ## write kernels/budget.tsv anew, after a change of kernels that is meant
	$(WITH_MPI) NVCC=$(CURDIR)/$(BUILD)/cuda/nvidia/cu13/bin/nvcc REQUIRE_KERNELS=1 UPDATE_KERNEL_BUDGET=1 \
		$(CARGO) test --locked --test kernel_build $$features the_kernels_pass_the_gate -- --nocapture

kernels-clocks: .cargo-found nvcc ## predicted clocks of every kernel on sm_90 against kernels/clocks.tsv; UPDATE=1 writes it anew
	$(WITH_MPI) KERNEL_ARCHES=90a NVCC=$(CURDIR)/$(BUILD)/cuda/nvidia/cu13/bin/nvcc REQUIRE_KERNELS=1 UPDATE_KERNEL_CLOCKS=$(UPDATE) \
		$(CARGO) test --locked --test kernel_build $$features the_clocks_are_those_of_the_table -- --nocapture

lint: .cargo-found ## formatting and clippy, warnings are errors
	$(CARGO) fmt --check
	$(WITH_MPI) $(CARGO) clippy --locked --all-targets $$features -- -D warnings
	$(CARGO) clippy --locked --lib --bins --test parallel -- -D warnings

fmt: ## format the source
	$(CARGO) fmt

clean: ## remove what was built (checkpoints in out/ stay)
	$(CARGO) clean
	rm -rf $(BUILD) train_gpt2 train_gpt2cu warpsmith
