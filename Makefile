# Needs python3 >= 3.10 and make, nothing else. Kept to what GNU make 3.81 knows: that is what macOS ships.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check clean
export PYTHON

help: ## this list
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | while IFS='	' read -r target text; do printf '  %-8s%s\n' "$$target" "$$text"; done
	@echo 'The first run makes .venv; PYTHON=/path/to/python3 chooses the interpreter.'

demo: .venv/installed ## embed, search, compare and answer with the model in the package
	@sh scripts/demo.sh

test: .venv/installed-dev ## run the tests; ARGS="-k pooling -x" goes to pytest
	.venv/bin/python -m pytest $(ARGS)

check: .venv/installed-dev ## lint, formatting, types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy grit_mlx tests

clean: ## remove .venv and everything else that is generated
	rm -rf .venv build dist grit_mlx.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# These two files are written last, so an install that was cut short does not count as one.
.venv/installed .venv/installed-dev: pyproject.toml constraints.txt scripts/venv.sh .venv/bin/python
.venv/installed:
	@sh scripts/venv.sh
.venv/installed-dev:
	@sh scripts/venv.sh dev

# Absent at first, and again when the interpreter that it links to is uninstalled: both mean install.
.venv/bin/python: ;
