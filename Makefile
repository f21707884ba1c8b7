# Requires only python3 >= 3.10 and make. Must work with GNU make 3.81, which macOS ships.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test peft integrations check clean
export PYTHON

help: ## show this list
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | while IFS='	' read -r target text; do printf '  %-14s%s\n' "$$target" "$$text"; done
	@echo 'The first run creates .venv. PYTHON=/path/to/python3 selects the interpreter.'

demo: .venv/installed ## try search, similarity and rag with the built-in model
	@sh scripts/demo.sh

test: .venv/installed-dev ## run the tests; ARGS="-k pooling -x" is passed to pytest
	.venv/bin/python -m pytest $(ARGS)

peft: .venv/installed-dev ## compare adapters with PEFT, and a recipe with its PyTorch
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[peft]'
	GRIT_REQUIRE_PEFT=1 .venv/bin/python -m pytest tests/faults/test_real_peft.py tests/test_recipe.py

integrations: .venv/installed-dev ## test the adapters for other tools, which are installed beside .venv
	@sh scripts/integrations.sh

check: .venv/installed-dev ## check lint, formatting and types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy grit_mlx tests

clean: ## remove .venv and all generated files
	rm -rf .venv .venv-integrations build dist grit_mlx.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# These two files are written last, so an interrupted install is repeated.
.venv/installed .venv/installed-dev: pyproject.toml constraints.txt scripts/venv.sh .venv/bin/python
.venv/installed:
	@sh scripts/venv.sh
.venv/installed-dev:
	@sh scripts/venv.sh dev

# Missing before the first install, and if the interpreter that it links to was uninstalled.
.venv/bin/python: ;
