# Each target sets up what it needs: Python 3.10 or newer, git and make are enough to start.
PYTHON ?= python3
J ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)

.PHONY: help setup check weights demo examine test repro publish export lint deps templates figures cards report notebook images-table seeds experiments queue bench autoattack lock clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: .venv/.installed   ## a virtual environment with the pinned packages

# torchattacks pins a `requests` of 2021 that it never imports; without its dependencies it needs only torch.
.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	@touch $@

check: setup     ## is all there that a run needs? Parameters, data and machine, in seconds
	@python -m scripts.check

# No CIFAR, no training, no server: weights/ came with the clone
weights: setup   ## the two trained models of this commit, in data/checkpoints, from weights/
	@dvc pull -r weights data/checkpoints/standard.pt data/checkpoints/robust.pt

demo: setup      ## the whole pipeline on scikit-learn's digits, and its report: no download, three minutes, nothing here changes
	@sh scripts/demo.sh

examine: $(and $(MODEL),$(IMAGES),setup)   ## one classifier judged: make examine MODEL=py:my_model.py:build IMAGES=photos/test ARGS="--budget 10m"
	@$(if $^,,$(error name both: make examine MODEL=py:my_model.py:build IMAGES=photos/test))
	@python -m scripts.examine "$$MODEL" --images "$$IMAGES" $(ARGS)

# A worker a core, each with a thread of its own: beside each other, threads would wait for one another
test: setup      ## every test, the pipeline on the digits included
	OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadfile

repro: setup     ## the CIFAR study: about two hours on two cores that have bfloat16
	@python -m scripts.mend
	dvc repro

publish: setup   ## weights/ as a new training left dvc.lock: commit it with dvc.lock
	@python -m scripts.weights

export: setup    ## both models as safetensors and ONNX, in build/export
	@python -m scripts.export

# Types need NumPy's of 2.3 and later, which Python 3.10 cannot have
lint: setup      ## ruff: faults and format; mypy: types; dvc.yaml and .dvc/plots as their programs write them
	ruff check .
	ruff format --check .
	if python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then mypy; else echo "Python 3.10: no types checked"; fi
	python -m scripts.deps --check
	python -m scripts.templates --check

deps: setup      ## dvc.yaml's dependencies on code, written from the imports
	python -m scripts.deps

templates: setup   ## .dvc/plots, written from scripts/templates.py
	python -m scripts.templates

figures: setup   ## README's picture, drawn from the committed tables
	python -m scripts.picture

cards: setup     ## docs/cards, what each model is for and which of its figures to believe
	@python -m scripts.cards

report: setup    ## build/report.html, one page of everything, compared with REV if given: make report REV=HEAD~1
	python -m scripts.report $(REV)

# Jupyter is for looking only, so it is no requirement of the project's
notebook: setup   ## docs/tour.ipynb in Jupyter, which is installed into .venv if it is not there
	@test -x $(BIN)/jupyter-lab || $(BIN)/python -m pip install --quiet --disable-pip-version-check jupyterlab
	@jupyter lab docs/tour.ipynb

seeds: setup     ## mean and interval of every figure over N seeds (make seeds N=3), by DVC's own experiments
	python -m scripts.seeds $(or $(N),3)

# Of some six hundred columns `dvc exp show` keeps the parameters that differ and these figures of each model.
NOISE := ^(Created|rev|typ|parent|State|Executor|(stages|data|metrics|plots)/.*|(sizes|base_rate|fingerprint|val_|epoch|trained_eps|robust_minus).*|.*_(epochs|low|high)|(standard|robust)\.(?!(clean|fgsm|pgd|max_logit\.auroc|failed)$$).*)$$
experiments: setup   ## the experiments of this commit: what was turned, and the headline figures
	@dvc exp show --md --only-changed --drop '$(NOISE)'

queue: setup     ## run the queued experiments J at a time, the cores divided among them (make queue J=2)
	OMP_NUM_THREADS=$$(python -c 'import os; print(max(1, os.cpu_count() // $(J)))') dvc queue start -j $(J)

images-table: setup   ## pictures of the test and OOD images that say most, from data/images.csv: build/images
	@python -m scripts.images_table

bench: setup     ## speed beside peers in the same run, on the prepared CIFAR-10: a quarter of an hour on a quiet machine
	python -m benchmarks

autoattack: setup   ## the robust model under AutoAttack and PGD-50 x 10, beside the audit's figure: half an hour
	python -m benchmarks.autoattack

lock: setup      ## pin the newest versions that pyproject.toml allows
	pip install --quiet uv
	mkdir -p build
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-header --no-annotate --quiet \
	  > build/versions
	{ head -n 1 requirements.lock; grep -vE '^(nvidia-|cuda-|triton)' build/versions; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:           ## what the targets above made, prepared data and checkpoints included
	rm -rf .venv build dvc_plots data/prepared data/checkpoints data/resume data/rows data/images.csv
