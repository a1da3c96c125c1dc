# warpsmith: every target is a line or two around cargo. `make help` lists them.

.DEFAULT_GOAL := build
SHELL := /bin/bash

CARGO ?= cargo
BUILD := build
VENV ?= $(BUILD)/venv
OUT ?= out/stories

# MPI is built in where possible; MPI=0 disables it, MPI=1 requires it. It is set the same
# everywhere, so that cargo builds things once.
MPI ?=
WITH_MPI = features=$$(dev/find_mpi.sh "$(MPI)") &&

# REMAP=1 keeps the places of this machine's files out of the programs; `make dist` sets it.
REMAP ?=
PLACES := $(CURDIR)=warpsmith $(or $(CARGO_HOME),$(HOME)/.cargo)=cargo $(or $(RUSTUP_HOME),$(HOME)/.rustup)=rustup
comma := ,
empty :=
REMAP_FLAGS := [$(subst $(empty) $(empty),$(comma),$(PLACES:%="--remap-path-prefix=%"))]
RELEASE = $(CARGO) build --release --locked $(if $(REMAP),--config 'target."cfg(all())".rustflags=$(REMAP_FLAGS)')

# Compression of archives: 0 is fast, 9 small.
PACK ?= 6

.PHONY: help build train train_gpt2 train_gpt2cu warpsmith nvcc kernels-check kernels-budget kernels-clocks dist docker test torture fuzz lint fmt bench gpu-report gpu-report-programs parity interop browser-test venv clean

help: ## show this list
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-20s %s\n", $$1, $$2}'

build: .cargo-found ## build ./train_gpt2 and ./warpsmith, optimized
	@$(WITH_MPI) $(RELEASE) --bins $$features
	@cp -f target/release/train_gpt2 target/release/warpsmith .

.cargo-found:
	@command -v $(CARGO) >/dev/null || { echo "warpsmith needs Rust 1.91 or newer: install it from https://rustup.rs, then open a new shell" >&2; exit 2; }
	@command -v cc >/dev/null || { echo "warpsmith needs a C compiler to link: apt install gcc (or xcode-select --install)" >&2; exit 2; }
.PHONY: .cargo-found

train_gpt2 warpsmith: .cargo-found
	@$(WITH_MPI) $(RELEASE) --bin $@ $$features
	@cp -f target/release/$@ $@

.nvcc-found:
	@dev/setup_nvcc.sh --unless-found
	@command -v "$${NVCC_CCBIN:-g++}" >/dev/null || { echo "nvcc needs a C++ compiler: apt install g++" >&2; exit 2; }
.PHONY: .nvcc-found

train_gpt2cu: .cargo-found .nvcc-found ## build ./train_gpt2cu with its GPU kernels; installs nvcc if there is none
	@$(WITH_MPI) REQUIRE_KERNELS=1 $(RELEASE) --bin $@ $$features
	@cp -f target/release/$@ $@

nvcc: ## install NVIDIA's compiler (13.0, pinned) and disassembler into build/cuda
	@dev/setup_nvcc.sh

# --- the main job: make train [TEXT=file.txt] [OUT=dir] [STEPS=n]; after an interruption, run it
# again to resume

TEXT ?=
STEPS ?= 1800
STORY_TOKENS ?= 6000000
# Tokens of the vocabulary, which is learned from the text. With GPT-2's 50,257 a small model would
# spend most of its time and parameters on the embedding.
VOCAB ?= 2048
ifeq ($(TEXT),)
CORPUS := $(BUILD)/stories.txt
PREFIX := stories
else
ifneq ($(words $(TEXT)),1)
$(error TEXT=$(TEXT): expected one path without spaces; use ./warpsmith data and ./train_gpt2 for more)
endif
# The name plus a checksum of the full path, so that files with the same name do not collide.
PREFIX := $(basename $(notdir $(TEXT:/=)))-$(firstword $(shell printf %s "$(abspath $(TEXT))" | cksum))
CORPUS := $(TEXT)
ifeq ($(OUT),out/stories)
OUT := out/$(PREFIX)
endif
endif
DATA := $(BUILD)/$(PREFIX)-$(VOCAB)
PROMPT ?= Once upon a time
# bf16 where the hardware multiplies it; the start-up table shows the type.
DTYPE ?= auto
# A GPU is used if there is one and its kernels can be compiled, for which nvcc may be installed;
# GPU= disables it.
GPU ?= $(shell nvidia-smi -L 2>/dev/null | grep -q . && echo yes)
ifneq ($(GPU),)
GPU := $(if $(filter train,$(MAKECMDGOALS)),$(shell dev/setup_nvcc.sh --unless-found >&2 && echo yes))
endif
ifneq ($(GPU),)
TRAINER := train_gpt2cu
SHAPE ?= --layers 6 --heads 6 --channels 384 -b 16 -t 256 -l 1e-3
else
# A model that two cores train in minutes: 8.1 million parameters.
TRAINER := train_gpt2
SHAPE ?= --layers 6 --heads 5 --channels 320 -b 4 -t 256 -l 2e-3
endif
TRAIN_FLAGS ?= $(SHAPE) -u 60 -q 0.05 -c 0.1 -v 200 -m 16 -s 500 -g 200 --sample-temperature 0.7

$(BUILD)/stories.txt: | build
	./warpsmith stories -o $@ --tokens $(STORY_TOKENS) --force

$(DATA)/vocabulary/tokenizer.json: $(CORPUS) | build
	./warpsmith tokenizer train "$(CORPUS)" --vocab-size $(VOCAB) -o $@ --force

$(DATA)/$(PREFIX)_train_000001.bin: $(CORPUS) $(DATA)/vocabulary/tokenizer.json | build
	./warpsmith data "$(CORPUS)" -o $(DATA) --name "$(PREFIX)" --tokenizer $(DATA)/vocabulary --force

train: build $(TRAINER) $(DATA)/$(PREFIX)_train_000001.bin ## train a small model on built-in stories (or TEXT=file.txt), then plot and sample
	./$(TRAINER) -i '$(DATA)/*_train_*.bin' -j '$(DATA)/*_val_*.bin' -o $(OUT) -y 1 -n 200 -nk 2 --dtype $(DTYPE) $(TRAIN_FLAGS) --prompt "$(PROMPT)" -x $(STEPS)
	./warpsmith plot $(OUT)
	./warpsmith sample --model $(OUT) --prompt "$(PROMPT)" --temperature 0.7 --max-tokens 300 --dtype $(DTYPE)

# --- packages: docs/installing.md

# MPI's library would have to be on the other machine, so it is left out unless MPI=1.
# KERNEL_ARCHES=90a is for a single kind of GPU, KERNEL_ARCHES=none for none.
dist: REMAP := 1
dist: MPI := $(or $(MPI),0)
dist: .cargo-found $(if $(filter none,$(KERNEL_ARCHES)),,.nvcc-found) ## build dist/warpsmith-VERSION-TARGET.tar.xz for other machines, with GPU kernels; KERNEL_ARCHES=none without
	@$(WITH_MPI) $(if $(filter none,$(KERNEL_ARCHES)),,REQUIRE_KERNELS=1) $(RELEASE) --bins $$features
	@PACK=$(PACK) dev/dist.sh target/release

DOCKER ?= docker
IMAGE ?= warpsmith
docker: ## build the image IMAGE=warpsmith with the three programs and NVIDIA's libraries; DOCKER=podman works, too
	$(DOCKER) build -t $(IMAGE) --build-arg KERNEL_ARCHES="$(KERNEL_ARCHES)" --build-arg REVISION="$$(git log -1 --format=%H)" \
		--build-arg DATE="$$(git log -1 --format=%cs)" --build-arg VERSION="$$(sed -n '0,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)" .

# --- comparisons with PyTorch (development only; uses its own virtual environment under build/)

venv:
	@dev/setup_venv.sh $(VENV)

STORIES := $(BUILD)/stories/stories_train_000001.bin
$(STORIES): | build
	./warpsmith stories -o $(BUILD)/stories --tokens $(STORY_TOKENS) --force

parity: build venv $(STORIES) ## compare loss and norm with PyTorch and Hugging Face over 20 steps
	$(VENV)/bin/python dev/parity.py --data '$(STORIES)' $(PARITY_FLAGS)

interop: build ## exchange data, tokenizers and models with the real transformers, lm_eval, pyarrow and others, and runs with MLflow, TensorBoard and W&B
	@dev/setup_venv.sh --interop $(VENV)
	$(VENV)/bin/python dev/interop.py

browser-test: build ## drive the page of warpsmith watch in a headless Chromium (apt install chromium chromium-driver)
	python3 dev/browser_test.py

# With a GPU, ours and the fastest PyTorch variant at the batch of published runs; otherwise both on
# the CPU.
GPU := $(shell command -v nvidia-smi)
BENCH := $(VENV)/bin/python dev/bench.py --data '$(STORIES)' -e d12
# A CPU without hardware bf16 refuses it, and it is skipped.
CPU_BENCH := $(BENCH) --ours 'f32=./train_gpt2 --shuffle llmc --dtype f32' \
	--ours-optional 'bf16=./train_gpt2 --shuffle llmc --dtype bf16' \
	--torch f32:eager --torch f32:compile --torch bf16:eager --torch bf16:compile

bench: build $(if $(GPU),train_gpt2cu) venv $(STORIES) ## time a 124M step next to PyTorch, and on a GPU each kernel; recorded in benches/record
ifneq ($(GPU),)
	$(BENCH) --ours './train_gpt2cu -r 0 --shuffle llmc' -b 64 -t 1024 -d 524288
	$(VENV)/bin/python dev/bench_attention.py -e d12,d24,d36,d48 -b 64 -t 1024 --out $(BUILD)/peers.json
	$(WITH_MPI) REQUIRE_KERNELS=1 $(CARGO) bench --locked --bench kernels $$features -- --peers $(BUILD)/peers.json
else
	$(CPU_BENCH) -b 4 -t 64
	$(CPU_BENCH) -b 1 -t 1024
endif

# --- the GPU report: everything that needs a GPU, in programs that run on a machine without cargo

# Built without MPI unless MPI=1, because the other machine may not have it. KERNEL_ARCHES=90a, for
# a single kind of GPU, keeps the archive small; REPORT_PROFILE=dev builds them as tests are built;
# SANITIZER=1 adds compute-sanitizer for a machine without it.
REPORT_PROFILE ?= release
# Files the report needs besides build/gpu: its scripts, golden files, sources that the probe tests
# read, and counts.
REPORT_FILES := dev kernels/ptx.cuh kernels/hopper.cuh tests/probes benches/record/emulated

gpu-report-programs: .cargo-found .nvcc-found ## build the programs of `make gpu-report` for a machine without cargo: build/gpu.tar.xz
	@features=$$(dev/find_mpi.sh "$(or $(MPI),0)") && REQUIRE_KERNELS=1 $(CARGO) build --profile $(REPORT_PROFILE) --locked --bins $$features $(if $(filter dev,$(REPORT_PROFILE)),--features testing)
	@mkdir -p $(BUILD)/gpu
	@cp -f $(addprefix target/$(if $(filter dev,$(REPORT_PROFILE)),debug,$(REPORT_PROFILE))/,train_gpt2 train_gpt2cu warpsmith) $(BUILD)/gpu/
	@features=$$(dev/find_mpi.sh "$(or $(MPI),0)") || exit; \
	built() { $(CARGO) test --profile $(REPORT_PROFILE) --locked --no-run $$features "$$@" 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p'; }; \
	set -e; for name in kernels probes nccl; do cp -f "$$(built --test $$name)" $(BUILD)/gpu/$$name; done; \
	cp -f "$$(built --bench kernels)" $(BUILD)/gpu/bench
	@$(if $(SANITIZER),dev/setup_sanitizer.sh $(BUILD)/gpu)
	@for name in train_gpt2 train_gpt2cu warpsmith kernels probes nccl bench; do strip $(BUILD)/gpu/$$name || exit; done
	@git describe --always --dirty > $(BUILD)/SOURCE 2>/dev/null || echo unknown > $(BUILD)/SOURCE
	@tar -c --exclude=__pycache__ $(BUILD)/gpu $(REPORT_FILES) -C $(BUILD) SOURCE | xz -T0 -$(PACK) > $(BUILD)/gpu.tar.xz
	@echo "$(BUILD)/gpu.tar.xz: $$(du -m --apparent-size $(BUILD)/gpu.tar.xz | cut -f1) MiB"

gpu-report: gpu-report-programs ## run everything that needs a GPU: tests, parity, steps, kernels; summary in build/gpu-report/REPORT.md
	dev/gpu_report.sh $(BUILD)/gpu-report

# --- checks

test: .cargo-found ## run all tests; lists those that were skipped, and why
	$(WITH_MPI) CARGO=$(CARGO) dev/test.sh --workspace --locked $$features

# Kills at random moments; faults are injected at every call.
KILLS ?= 1000
torture: .cargo-found ## kill runs and fail their disk at every call, KILLS=1000 times and more, resume each, and compare bit for bit
	TORTURE_KILLS=$(KILLS) TORTURE_CALLS=all TORTURE_QUIET=1 $(CARGO) test --locked --test torture -- --nocapture

# A reader of tests/fuzz/targets.rs.
TARGET ?= model_bin
fuzz: .cargo-found ## fuzz one reader until it fails: TARGET=model_bin; needs nightly Rust and cargo-fuzz
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "make fuzz needs cargo-fuzz: rustup toolchain install nightly && cargo install cargo-fuzz" >&2; exit 2; }
	FUZZ_CORPUS=$(CURDIR)/fuzz/corpus $(CARGO) test --locked --test fuzz valid_input
	KERNEL_ARCHES=none $(CARGO) +nightly fuzz run $(TARGET)

kernels-check: .cargo-found .nvcc-found ## compile every kernel for every architecture; check for spills, kernels/budget.tsv and kernels/clocks.tsv
	$(WITH_MPI) CARGO=$(CARGO) REQUIRE_KERNELS=1 REQUIRE_TESTS="nvcc $$REQUIRE_TESTS" \
		dev/test.sh --locked --test kernel_build $$features -- --nocapture

kernels-budget: .cargo-found nvcc ## rewrite kernels/budget.tsv after an intended change of kernels
	$(WITH_MPI) NVCC=$(CURDIR)/$(BUILD)/cuda/nvidia/cu13/bin/nvcc REQUIRE_KERNELS=1 UPDATE_KERNEL_BUDGET=1 \
		$(CARGO) test --locked --test kernel_build $$features the_kernels_keep_to_the_budget -- --include-ignored --nocapture

kernels-clocks: .cargo-found nvcc ## compare predicted clocks on sm_90 with kernels/clocks.tsv; UPDATE=1 rewrites it
	$(WITH_MPI) KERNEL_ARCHES=90a NVCC=$(CURDIR)/$(BUILD)/cuda/nvidia/cu13/bin/nvcc REQUIRE_KERNELS=1 UPDATE_KERNEL_CLOCKS=$(UPDATE) \
		$(CARGO) test --locked --test kernel_build $$features the_clocks_are_those_of_the_table -- --include-ignored --nocapture

lint: .cargo-found ## check formatting, clippy and rustdoc; warnings are errors
	$(CARGO) fmt --all --check
	$(WITH_MPI) $(CARGO) clippy --workspace --locked --all-targets $$features -- -D warnings
	$(CARGO) clippy --locked --lib --bins -- -D warnings
	$(CARGO) clippy --locked --test parallel -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --locked --no-deps --quiet

fmt: ## format the source
	$(CARGO) fmt --all

clean: ## remove build output (checkpoints in out/ stay)
	$(CARGO) clean
	rm -rf $(BUILD) dist train_gpt2 train_gpt2cu warpsmith
