# One-time set-up in .venv, then the commands of the README. DEVICE=cuda installs fbgemm's CUDA build instead.
DEVICE ?= cpu
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready-$(DEVICE)
# Two processes share the tests, file by file; without it they run one after the other.
PARALLEL ?= -n 2 --dist loadgroup --no-loadscope-reorder
# A run has hundreds of processes. Without Python's compiled files each of them would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-faults test-cuda check format bench docs manifests image-test clean

demo: $(READY)
	$(BIN)/python -m jobs.demo

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

# Needs a GPU, and the CUDA build: make DEVICE=cuda test-cuda.
test-cuda: $(READY)
	$(BIN)/python -m pytest -m cuda

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

docs: $(READY)
	$(BIN)/python -m jobs.config_reference > docs/config.md.new
	mv docs/config.md.new docs/config.md
	$(BIN)/python -m jobs.record_reference > docs/records.md.new
	mv docs/records.md.new docs/records.md

# The RayJob of every overlay, as the launcher's template.
manifests: $(READY)
	sh k8s/render.sh "$(CURDIR)/$(BIN)/kubectl"

# Minutes; needs root, buildah, podman, runc and debootstrap, and says so where they are not.
image-test:
	sh k8s/image-test/run.sh

$(READY): requirements/base.txt requirements/dev.txt requirements/mlflow.txt requirements/$(DEVICE).txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/base.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/$(DEVICE).txt
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
