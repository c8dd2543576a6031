# `make demo` samples the shipped keypoints with the shipped model, `make test` runs the suite, `make docs` builds the site into site/.
# All make the environment on first use and reuse it afterwards; only the package index is needed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint docs clean

demo: $(READY)
	$(BIN)/probpose sample examples/data/basketball.npz --focal 1145 --model hub/models/d3dp-mocap17 --out out --overwrite
	@echo "Look at out/basketball.png and open out/basketball.html in a browser."

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch first, at the tested version: the pinned release has a CPU build everywhere, the newest may pull in gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) out site build dist *.egg-info
