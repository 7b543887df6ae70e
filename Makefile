# Each target works alone on a fresh machine with Python 3.11 or newer and network: it makes .venv and installs what constraints.txt pins.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test integrations lint types docs package clean

demo: .venv/lab ## Any learning rate or none, and the paper's six optimizers; figures and tables in runs/demo
	$(BIN)/hypergradient demo

test: .venv/dev ## Tests, docstring examples, and the code in README.md and docs/
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

integrations: .venv/dev ## Beside other packages, processes and data: trainers, ranks, Ray, MNIST, torch's own checks, every scheduler, examples/
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder tests/integrations src/hypergradient/integrations

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev ## The source by mypy, and the public API as its users' editors see it by pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python --project tests/typed

docs: .venv/dev ## The documentation as pages in site/; a broken link or anchor is an error (which --quiet would hide)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/dev ## Wheel and source distribution in dist/, built as they are released, and checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:
	rm -rf .venv site build dist src/*.egg-info

.venv/lab .venv/dev: .venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[$*]'
	touch $@
