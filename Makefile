.DEFAULT_GOAL := help
.PHONY: help setup check test bench docs

help:  ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

setup:  ## make the environment in .venv
	uv sync

check:  ## lint, formatting and types
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:  ## the default test suite
	uv run pytest

bench:  ## overhead in interleaved pairs; raw samples in benchmarks/results
	uv run python benchmarks/overhead.py

docs:  ## the documentation, warnings are errors
	uv run --group docs sphinx-build -W -b html docs docs/_build/html
