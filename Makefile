# warpsmith: every target is a line or two over cargo. `make help` lists them.

.DEFAULT_GOAL := build
SHELL := /bin/bash

CARGO ?= cargo
BUILD := build
VENV ?= $(BUILD)/venv
OUT ?= out/stories

.PHONY: help build train train_gpt2 warpsmith test lint fmt bench parity venv clean

help: ## this list
	@grep -hE '^[a-z0-9_]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

build: train_gpt2 warpsmith ## ./train_gpt2 and ./warpsmith, optimised

.cargo-found:
	@command -v $(CARGO) >/dev/null || { echo "warpsmith needs Rust 1.89 or newer: install it from https://rustup.rs, then open a new shell" >&2; exit 2; }
	@command -v cc >/dev/null || { echo "warpsmith needs a C compiler to link: apt install gcc (or xcode-select --install)" >&2; exit 2; }
.PHONY: .cargo-found

train_gpt2 warpsmith: .cargo-found
	@$(CARGO) build --release --locked --bin $@
	@cp -f target/release/$@ $@

# --- the main job: make train [TEXT=file.txt] [OUT=dir] [STEPS=n]. Interrupt it and run it again: it goes on.

TEXT ?=
STEPS ?= 600
ifeq ($(TEXT),)
DATA := $(BUILD)/stories
PREFIX := stories
else
PREFIX := $(basename $(notdir $(TEXT)))
DATA := $(BUILD)/text-$(PREFIX)
ifeq ($(OUT),out/stories)
OUT := out/$(PREFIX)
endif
endif
PROMPT ?= Once upon a time

train: build ## train a small model on built-in stories (or TEXT=file.txt), then plot and sample
	@test -d $(DATA) || if [ -z "$(TEXT)" ]; then ./warpsmith stories -o $(DATA); else ./warpsmith data "$(TEXT)" -o $(DATA); fi
	./train_gpt2 -i '$(DATA)/*_train_*.bin' -j '$(DATA)/*_val_*.bin' -o $(OUT) -y 1 -n 100 -nk 2 $(TRAIN_FLAGS) -x $(STEPS)
	./warpsmith plot $(OUT)
	./warpsmith sample --model $(OUT) --prompt "$(PROMPT)"

# --- checks

test: .cargo-found ## all tests
	$(CARGO) test --locked

lint: .cargo-found ## formatting and clippy, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

fmt: ## format the source
	$(CARGO) fmt

clean: ## remove what was built (checkpoints in out/ stay)
	$(CARGO) clean
	rm -rf $(BUILD) train_gpt2 warpsmith
