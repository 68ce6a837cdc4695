.DEFAULT_GOAL := help
.PHONY: help demo test slow setup check oldest bench docs

# uv where it is installed, else one of our own; python3 is all a fresh machine needs.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)

help:  ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv

demo: $(UV)  ## set up from nothing, record the image-processing example, show its first page
	$(UV) run --quiet --no-default-groups --extra examples recup run examples/image_processing/image_processing.py

test: $(UV)  ## set up from nothing and run the default test suite
	$(UV) run --quiet pytest -n 2 --dist loadfile

setup: $(UV)  ## make the development environment in .venv
	$(UV) sync

slow: $(UV)  ## the tests that take long
	$(UV) run --quiet pytest -m slow

check: $(UV)  ## lint, formatting and types
	$(UV) run ruff check .
	$(UV) run ruff format --check .
	$(UV) run mypy

OLDEST = --isolated --no-dev --with 'distributed==2024.11.2' --with 'dask[array,dataframe]==2024.11.2' --with 'pandas<3' \
	--with pytest --with pytest-timeout --with hypothesis --with xarray

oldest: $(UV)  ## the cluster tests on the oldest supported distributed
	$(UV) run --quiet $(OLDEST) python -m pytest -p no:cacheprovider tests/cluster/test_workloads.py tests/cluster/test_ways_in.py tests/cluster/test_faults.py

bench: $(UV)  ## overhead in interleaved pairs; raw samples in benchmarks/results
	$(UV) run python benchmarks/overhead.py

docs: $(UV)  ## the documentation, warnings are errors
	$(UV) run --group docs sphinx-build -W -q -b html docs docs/_build/html
