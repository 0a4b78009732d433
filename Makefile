# make demo: the main job on the embedded data set.  make test: what CI runs.  make long: the tests that are too long for
# that.  make docs: the site.  Each sets everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test suite long docs lint format clean

# Twice the paper's epsilon, as digits are easier than photographs. The audit takes several times as long as the attacks
# here; any other evaluation has it unless told otherwise.
SMALL := --images 100 --epsilon 0.062 --precision float32 --audit false --save_images true --fresh true

# A worker that dies fails the run, with the name of its test; a new one in its place would wait for good.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

demo: $(INSTALLED)
	$(BIN)/python train.py --config examples/demo.yaml
	@# With radius 0 g changes nothing: f_a alone, for contrast.
	$(BIN)/python evaluate.py --attack pgd --defense.radius 0 --defense.steps 0 $(SMALL) --output results/demo/without-g
	$(BIN)/python evaluate.py --suite bpda --attack.bpda-eot.gradient.draws 5 $(SMALL) --output results/demo
	@echo "dashboard: $(BIN)/tensorboard --logdir logs"
	$(BIN)/python examples/demo.py results/demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) suite
	@# Every attack, defense and training on a pretended accelerator, in processes of their own.
	$(BIN)/pytest $(WORKERS) tests/pretend

# What the oldest versions pass too: PIP_CONSTRAINT=.ci/oldest.txt make suite. mypy knows no types of theirs, and a
# pretended accelerator takes a newer torch.
suite: $(INSTALLED)
	$(BIN)/pytest $(WORKERS)

# Every study at its smallest scale, the audit on every kind of evaluation, kills at any moment: half as long as make test.
long: $(INSTALLED)
	$(BIN)/pytest $(WORKERS) -m long

# Strict: whatever mkdocs warns of, dead links and anchors among it, is an error.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --clean
	@echo "open site/index.html, or with search: $(BIN)/python -m http.server --directory site"

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/pre-commit run --all-files

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchattacks pins old versions of requests and tqdm that it does not need for what is compared here, hence --no-deps.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,peers,imagenet]"
	$(BIN)/python -m pip install --quiet --no-deps "torchattacks>=3.5.1"
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
