# `make demo` and `make test` are all a new user needs; `make help` shows the rest.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-slow test-arm torture fuzz-api sbom lint docs clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile | expand -t 12

demo: .venv/train,serve.done  ## install, then train, export, predict, bench and serve on real images
	$(BIN)/qdeploy train
	$(BIN)/qdeploy export --int8
	$(BIN)/qdeploy predict examples/*.png
	$(BIN)/qdeploy bench
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/ask_a_server.sh examples/bag.png

# slow is what takes long and proves more than the main paths: whole sweeps, resumed trainings, other CPUs, Ray;
# a worker that is free takes the next test, and an xdist_group's tests, which share something costly, together
test:  ## the tests of the main paths, some minutes
test-slow:  ## the tests that take long and prove more
test: MARKED := not slow
test-slow: MARKED := slow
test test-slow: .venv/dev.done .venv/include/onnxruntime_c_api.h
	$(BIN)/python -m compileall -q qdeploy  # the commands under test are short: no time for it in each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=20 -m "$(MARKED)" \
		--ignore tests/timing
	$(BIN)/python -m pytest -m "$(MARKED)" tests/timing  # nothing else runs beside them

# the shipped model files on an emulated ARM64 CPU (scripts/emulated_arm.sh); MODELS="a.onnx b.onnx" checks others
test-arm: .venv/dev.done  ## the model files on an emulated ARM64 CPU
	scripts/emulated_arm.sh .venv/arm64
	$(BIN)/python tests/emulation/arm_check.py --write .venv/arm64/answers.json $(MODELS)
	.venv/arm64/bin/python tests/emulation/arm_check.py --compare .venv/arm64/answers.json $(MODELS)

# everything that can go wrong, for so many minutes; the report replaces the one that is kept
torture: MINUTES ?= 25
torture: SEED ?= 0
torture: .venv/dev.done  ## everything that can go wrong, for MINUTES=25
	$(BIN)/python -m tests.torture --minutes $(MINUTES) --seed $(SEED) --out benchmarks/results/torture.json

fuzz-api: .venv/dev.done  ## the server's OpenAPI document against the server, by schemathesis
	$(PYTHON) -m venv .venv/schemathesis
	.venv/schemathesis/bin/python -m pip install --quiet 'schemathesis>=4'
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/fuzz_api.sh $(CURDIR)/.venv/schemathesis/bin/schemathesis

# by the tool of CycloneDX, in an environment of its own: it is no dependency
sbom: .venv/dev.done  ## what is installed, as an SBOM: build/sbom.json
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/python -m pip install --quiet 'cyclonedx-bom>=7'
	mkdir -p build
	.venv/sbom/bin/cyclonedx-py environment $(BIN)/python --output-reproducible --output-file build/sbom.json

lint: .venv/dev.done  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# every warning is an error: a link that leads nowhere, a page that no list names
docs: .venv/dev.done  ## the documentation as a site: build/docs/index.html, which needs no server
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/docs
	@echo "open build/docs/index.html"

clean:  ## remove what was installed and built
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
