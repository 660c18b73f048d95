# make run      environment, kernels, and attention on the reference problem: checked, and timed where there is a GPU
# make test     environment, kernels, the tests: on the emulator, in JOBS processes, and on the GPU where there is one
# make cubin    the kernels alone, for ARCHS and for this machine's GPUs
# make wheel    dist/flashcore_drv-*.whl with the kernels of ARCHS, which needs neither this repository nor a compiler
# make docs     the reference of the API in build/docs, from docstrings
# make check    formatting, lint, types, and no ctypes
ARCHS ?= 89
JOBS ?= $(shell nproc)
TESTS ?= tests
GPU_TESTS ?= tests/test_unfused.py tests/test_flash_fwd.py tests/test_flash_fwd_sm90.py tests/test_tma.py tests/test_features.py tests/test_runtime.py tests/test_api.py tests/emulator/test_driver_twin.py

# The user's own environment where the package's needs are installed in it, else .venv, which is made when it is missing.
VENV_PYTHON := .venv/bin/python
OWN_PYTHON := $(shell command -v python3 >/dev/null && python3 -c 'import cuda.bindings.driver, numpy' 2>/dev/null && echo python3)
cubin: PYTHON := $(if $(wildcard .venv/ready),$(VENV_PYTHON),$(or $(OWN_PYTHON),$(VENV_PYTHON)))
PYTHON := $(VENV_PYTHON)

.PHONY: run test cubin wheel docs check format clean
.NOTPARALLEL:

run: .venv/ready cubin
	$(PYTHON) scripts/run.py

test: .venv/ready cubin
	FLASHCORE_DRIVER=emulator OPENBLAS_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS) --dist loadgroup $(TESTS)
	@if FLASHCORE_DRIVER=cuda $(PYTHON) -c 'import flashcore_drv as fc; fc.Device.get(0)' 2>/dev/null; then \
		FLASHCORE_DRIVER=cuda $(PYTHON) -m pytest $(GPU_TESTS); \
	else echo 'no GPU: the kernels were tested on the emulator alone'; fi

cubin: $(if $(OWN_PYTHON),,.venv/ready)
	@$(PYTHON) scripts/cubins.py rules --archs "$(ARCHS)"
	@$(MAKE) --no-print-directory -j$(JOBS) -f build/rules.mk all
	@$(PYTHON) scripts/cubins.py table --archs "$(ARCHS)"

wheel: ARCHS = 80 86 89 90 120
wheel: .venv/ready cubin
	$(PYTHON) scripts/wheel.py --archs "$(ARCHS)"

docs: .venv/ready
	$(PYTHON) scripts/docs.py

CUDA_SOURCES = $(shell git ls-files -co --exclude-standard 'cuda/*.h' 'cuda/*.cuh' 'cuda/*.cu' 'scripts/*.cu' 'tests/*.cu')
PYTHON_SOURCES = flashcore_drv scripts tests
check: .venv/ready
	.venv/bin/ruff format --check $(PYTHON_SOURCES)
	.venv/bin/ruff check $(PYTHON_SOURCES)
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror $(CUDA_SOURCES)
	$(PYTHON) scripts/check_ctypes.py flashcore_drv scripts

format: .venv/ready
	.venv/bin/ruff format $(PYTHON_SOURCES)
	.venv/bin/ruff check --fix $(PYTHON_SOURCES)
	.venv/bin/clang-format -i $(CUDA_SOURCES)

.venv/ready: pyproject.toml
	python3 -c 'import sys; sys.exit("error: Python 3.10 or later is needed" if sys.version_info < (3, 10) else 0)'
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf build .venv *.egg-info
