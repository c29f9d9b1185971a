# Needs Python 3.11 to 3.13 and make; everything else goes into .venv.
#
#   make demo ARGS="--quick --seed 7"     whole fleet on this machine
#   make test | test-full | bench         suites (see tests/)
#   make board-test                       an emulated arm64 board, from Debian's archive to an upgrade (root, 10 to 30 min)
#   make parity-arm64                     the training backends on emulated arm64 (root, 2 to 10 min)
#   make check                            format, lint, types, layers, quick tests
#   make test WITH_TORCH=no               without the comparisons against torch (a large download)
#   make PYTHON=python3.13 demo           another interpreter

PYTHON ?= python3
WITH_TORCH ?= yes
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Stamps name what is installed; they are older than setup.cfg when its requirements changed.
DEMO_STAMP := .venv/.installed-demo
TEST_STAMP := .venv/.installed-test-torch-$(WITH_TORCH)
TEST_EXTRAS_yes := test,torch
TEST_EXTRAS_no := test
# Flower, which the benchmarks compare with, has requirements of its own.
FLWR_STAMP := .venv-flwr/.installed
# Authoring for LiteRT and the exporters that people come from (2 GB), and the older of the two LiteRT runtimes.
LITERT_STAMP := .venv-litert/.installed
TFLITE_STAMP := .venv-tflite/.installed
# One thread per process: suites start many processes, and times must not depend on the number of cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1

.PHONY: help demo check test test-full bench litert broker image-tools board-test board-tools parity-arm64 clean distclean

help:
	@sed -n 's/^#   //p' Makefile

.venv: $(DEMO_STAMP)

.venv/pyvenv.cfg:
	@echo "creating .venv"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "needs Python 3.11 to 3.13, found: $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "python3 -m venv failed; on Debian or Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }

$(DEMO_STAMP): setup.cfg pyproject.toml | .venv/pyvenv.cfg
	@echo "installing edge-flchain[demo] into .venv"
	@$(PIP) install -e '.[demo]'
	@touch $@

# After the demo's, so that two pips never write at once under make -j.
$(TEST_STAMP): setup.cfg pyproject.toml constraints.txt $(DEMO_STAMP)
	@echo "installing edge-flchain[$(TEST_EXTRAS_$(WITH_TORCH))] into .venv"
	@$(PIP) install -c constraints.txt -e '.[$(TEST_EXTRAS_$(WITH_TORCH))]'
	@touch $@

# The suites also run against a real broker when there is one; without it those tests say "skipped: no mosquitto".
# Likewise with the programs that write into images: their tests say which one is missing.
image-tools:
	@if PATH="$$PATH:/usr/sbin:/sbin" && command -v mcopy && command -v mkfs.vfat && command -v debugfs && command -v zstd; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		echo "installing mtools dosfstools e2fsprogs zstd" >&2; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
			mtools dosfstools e2fsprogs zstd; } || echo "they could not be installed; their tests are skipped" >&2; \
	else \
		echo "mtools, dosfstools, e2fsprogs or zstd is not installed; their tests are skipped" >&2; \
	fi >/dev/null

broker:
	@if PATH="$$PATH:/usr/sbin" command -v mosquitto >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing mosquitto"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y mosquitto; } >/dev/null \
			|| echo "mosquitto could not be installed; its tests are skipped" >&2; \
	else \
		echo "mosquitto is not installed; its tests are skipped" >&2; \
	fi

demo: $(DEMO_STAMP)
	@$(BIN)/flchain demo $(ARGS)

# Its quick tests are a part of test's: asked for together, they run once.
check: $(TEST_STAMP)
	@$(BIN)/python -m tools.check $(if $(filter test test-full,$(MAKECMDGOALS)),--no-tests)

# After check when both are asked for: two suites at once would disturb each other's time limits.
test: $(TEST_STAMP) broker image-tools $(filter check,$(MAKECMDGOALS))
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not bench" $(ARGS)

test-full: $(TEST_STAMP) litert broker image-tools $(filter check test,$(MAKECMDGOALS))
	@$(ONE_THREAD) HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -m "not bench" $(ARGS)

# Their tests say what is missing where an environment cannot be made.
$(LITERT_STAMP):
	@echo "installing tensorflow, LiteRT and model exporters into .venv-litert"
	@$(PYTHON) -m venv .venv-litert \
		&& .venv-litert/bin/pip --disable-pip-version-check --quiet install -e '.[litert,litert-authoring]' \
			'ai-edge-litert==2.3.*' 'tensorflow-cpu==2.21.*' tf2onnx skl2onnx \
		&& touch $@ \
		|| { rm -rf .venv-litert; echo "tensorflow could not be installed; the tests of LiteRT are skipped" >&2; }

$(TFLITE_STAMP):
	@echo "installing tflite-runtime into .venv-tflite"
	@$(PYTHON) -m venv .venv-tflite \
		&& .venv-tflite/bin/pip --disable-pip-version-check --quiet install 'tflite-runtime==2.14.*' 'numpy<2' cbor2 cryptography \
		&& touch $@ \
		|| { rm -rf .venv-tflite; echo "tflite-runtime could not be installed (it wants Python 3.11); its tests are skipped" >&2; }

litert: $(LITERT_STAMP) $(TFLITE_STAMP)

$(FLWR_STAMP):
	@echo "installing flwr into .venv-flwr"
	@$(PYTHON) -m venv .venv-flwr \
		&& .venv-flwr/bin/pip --disable-pip-version-check --quiet install 'flwr==1.41.*' \
		&& touch $@ \
		|| { rm -rf .venv-flwr; echo "flwr could not be installed; the comparison is skipped" >&2; }

# Rows stay in bench-results/; the table at the end holds all of them. ARGS="-k fleet" measures a part.
bench: $(TEST_STAMP) $(FLWR_STAMP) broker $(filter check test test-full,$(MAKECMDGOALS))
	@$(ONE_THREAD) $(BIN)/python -m pytest -s -m bench tests/bench $(ARGS)

# Debian packages that build and boot an arm64 system. Slow pieces stay in $$FLCHAIN_CACHE, else ~/.cache/edge-flchain.
BOARD_PACKAGES := mmdebstrap debian-archive-keyring qemu-user-static qemu-system-arm e2fsprogs fdisk kmod mosquitto
board-tools:
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make board-test needs root on Debian or Ubuntu" >&2; exit 1; \
	elif ! dpkg -s $(BOARD_PACKAGES) >/dev/null 2>&1; then \
		echo "installing $(BOARD_PACKAGES)"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
			$(BOARD_PACKAGES); } >/dev/null; \
	fi

# A part of test-full, where mmdebstrap is installed.
parity-arm64: $(TEST_STAMP)
	@if [ "$$(id -u)" = 0 ] && ! command -v mmdebstrap >/dev/null && command -v apt-get >/dev/null; then \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends mmdebstrap debian-archive-keyring; \
	fi >/dev/null
	@$(ONE_THREAD) $(BIN)/python -m pytest tests/parity/test_arm64_parity.py $(ARGS)

# ARGS="--report board.json" writes what was found.
board-test: $(TEST_STAMP) board-tools image-tools
	@$(ONE_THREAD) $(BIN)/python -m tools.board_test $(ARGS)

clean:
	rm -rf build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs bench-results
	find edge_sdk coordinator firmware_profiles tools tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-flwr .venv-litert .venv-tflite
