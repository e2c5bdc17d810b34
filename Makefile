# cftune: build, demo, tests. `make help` lists the targets.
#
# Variables: MODEL=path (a GGUF instead of the fetched one), JOBS=n (parallel compile jobs), OUTPUT=folder (of the demo).

SHELL := /bin/bash
GO    ?= go
OUTPUT ?= demo
export MODEL JOBS CFTUNE_CACHE LLAMA_CPP_DIR

.DEFAULT_GOAL := build
.PHONY: help build native cuda vulkan hip metal deps demo test sanitize soak bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Go takes no @loader_path in cgo's lines, where Linux's $$ORIGIN is.
ifeq ($(shell uname -s),Darwin)
RPATHS = -extldflags '-Wl,-rpath,@loader_path/../lib -Wl,-rpath,@loader_path/../native/lib'
endif

build: native ## build the native libraries and build/bin/cftune (default)
	$(GO) build -ldflags "-X main.revision=$$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null) $(RPATHS)" -o build/bin/cftune ./cmd/cftune

native: ## build build/native/lib: ggml, libllama and libcftune
	scripts/build-native

cuda: ## build build/native/lib/libcftune-cuda.so too, with nvcc (fetched if CUDA_HOME does not say where one is)
	scripts/build-native --cuda

vulkan: ## build ggml's Vulkan backend too, and test the portable path on the first Vulkan device (scripts/install-deps --vulkan)
	scripts/build-native --vulkan --tests
	ctest --test-dir build/native/obj -L vulkan --output-on-failure --no-tests=error

hip: ## build ggml's HIP backend too, for AMD GPUs (needs ROCm; ROCM_PATH says where it is)
	scripts/build-native --hip

metal: ## on a Mac: test the portable path on its GPU (its backend is always built there)
	scripts/build-native --tests
	ctest --test-dir build/native/obj -L metal --output-on-failure --no-tests=error

deps: ## install what building and testing needs (Debian, Ubuntu; on a Mac: say what is missing)
	scripts/install-deps

demo: deps build ## train CFT, SFT and mixed adapters on a small model and write a report (about 20 minutes)
	model=$$(scripts/fetch-model) && build/bin/cftune demo --model "$$model" --output "$(OUTPUT)"

test: deps ## build and run all tests (about 20 minutes on 2 cores)
	scripts/test

sanitize: deps ## run the native tests under AddressSanitizer and UndefinedBehaviorSanitizer
	scripts/sanitize

soak: deps build ## kill runs, break disks and files for an hour; the record goes to bench/results
	scripts/soak

bench: deps build ## measure training speed beside PyTorch + PEFT (fetches 3 GB the first time)
	bench/cpu/run

clean: ## remove what was built here (the cache of llama.cpp builds and models stays)
	rm -rf build
