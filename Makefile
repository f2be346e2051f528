# The commands a person types. Each does all its own set-up: a virtual environment under .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-fast lint format docs bench-accuracy bench-ops bench-search bench-gpu clean

help:
	@echo "make demo            train, evaluate and predict on real digits (a few minutes after set-up)"
	@echo "make test            every test"
	@echo "make test-fast       the tests that take seconds"
	@echo "make lint            ruff and pyright"
	@echo "make format          rewrite the code in the house's format"
	@echo "make docs            the site of these pages, in the folder site; a broken link is an error"
	@echo "make bench-accuracy  five networks, three seeds, one recipe (over an hour on two cores)"
	@echo "make bench-ops       the operators and whole networks against their rivals on this CPU"
	@echo "make bench-search    what a search costs, what it finds, and random networks beside it (about an hour)"
	@echo "make bench-gpu       check, then time, the GPU kernels: RESULTS=folder, PYTHON=one with torch and triton, STEPS=some alone"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/hadaptive demo

# Two processes of one thread each: idle threads of several would spin on the same cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: $(STAMP)
	$(PYTEST)

test-fast: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict --site-dir site
	@echo "open site/index.html; its search needs a server: python3 -m http.server --directory site"

bench-accuracy: $(STAMP)
	$(BIN)/python -m benchmarks accuracy

bench-ops: $(STAMP)
	$(BIN)/python -m benchmarks ops --sweep
	$(BIN)/python -m benchmarks depthwise
	$(BIN)/python -m benchmarks depthwise --sweep
	$(BIN)/python -m benchmarks norms --threads 1
	$(BIN)/python -m benchmarks networks

STUDY := runs/bench-search
bench-search: $(STAMP)
	$(BIN)/python -m benchmarks search
	test -d $(STUDY) && $(BIN)/hadaptive search --resume $(STUDY) || $(BIN)/hadaptive search \
		--recipe fmnist-small --latency-target 0.8xS --seeds 3 --baseline random 10 --output $(STUDY)
	mkdir -p benchmarks/results/search
	cp $(STUDY)/*.csv $(STUDY)/*.png $(STUDY)/networks.json benchmarks/results/search/
	cp $(STUDY)/searches/seed0/network.png benchmarks/results/search/network-seed0.png

# From the source tree, without an installation: GPU machines often have no network.
RESULTS ?= benchmarks/results
bench-gpu:
	$(PYTHON) -m benchmarks gpu $(RESULTS) $(STEPS)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
