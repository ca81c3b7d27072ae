# `make demo` and `make test` are all a new user needs; `make test-slow` and `make lint` are what else CI runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-arm lint clean

demo: .venv/train,serve.done
	$(BIN)/qdeploy train
	$(BIN)/qdeploy export --int8
	$(BIN)/qdeploy predict examples/*.png
	$(BIN)/qdeploy bench
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/ask_a_server.sh examples/bag.png

# slow is what takes long and proves more than the main paths: whole sweeps, resumed trainings, other CPUs, Ray;
# a worker that is free takes the next test, and an xdist_group's tests, which share something costly, together
test: MARKED := not slow
test-slow: MARKED := slow
test test-slow: .venv/dev.done .venv/include/onnxruntime_c_api.h
	$(BIN)/python -m compileall -q qdeploy  # the commands under test are short: no time for it in each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=20 -m "$(MARKED)"

# the shipped model files on an emulated ARM64 CPU (scripts/emulated_arm.sh); MODELS="a.onnx b.onnx" checks others
test-arm: .venv/dev.done
	scripts/emulated_arm.sh .venv/arm64
	$(BIN)/python tests/emulation/arm_check.py --write .venv/arm64/answers.json $(MODELS)
	.venv/arm64/bin/python tests/emulation/arm_check.py --compare .venv/arm64/answers.json $(MODELS)

lint: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "qdeploy needs Python 3.10 or newer: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv .venv

# the C kit's test compiles against this header, which ONNX Runtime's own wheel lacks and this small one (MIT) brings
.venv/include/onnxruntime_c_api.h: .venv/bin/python
	-$(BIN)/python -m pip download --quiet --no-deps --ignore-requires-python --dest .venv/header amd-quark==0.13
	-$(BIN)/python -m zipfile -e .venv/header/*.whl .venv/header
	-cp .venv/header/quark/onnx/operators/custom_ops/include/onnxruntime-*/onnxruntime/core/session/$(@F) $@
	-rm -r .venv/header

.venv/%.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
