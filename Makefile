# Two commands: `make report` and `make test`. Everything else is for developers.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
REPORT := reports/latest
STORE := $(REPORT)/store.sqlite
WRITE := $(BIN)/fwbench report $(STORE) -o $(REPORT) --title "fwbench: block 7 of SmolLM2-135M, and mini"

.PHONY: report test test-all bench docs lint format mini clean
.DEFAULT_GOAL := report

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fwbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

# One block of SmolLM2 (7 layers), then mini: run, certify, write the page, which stands once the real layers are done
report: $(READY)
	@mkdir -p $(REPORT)
	@$(BIN)/fwbench run 'smollm2/07.*' --store $(STORE) --time-limit 120 --jobs 2; code=$$?; \
	 if [ $$code -eq 0 ]; then $(BIN)/fwbench certify 'smollm2/07.*' --store $(STORE) && $(WRITE); \
	 elif [ $$code -eq 2 ]; then echo "real layers left out, for the reason above: reporting on mini alone"; \
	 else exit $$code; fi
	@$(BIN)/fwbench run mini --store $(STORE) --time-limit 10 --jobs 2
	@$(BIN)/fwbench certify mini --store $(STORE) --jobs 2
	@$(WRITE)

test: $(READY)
	$(BIN)/python -m pytest -n 2

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow' --timeout 3600

# asv builds its own environment from the pins, for the commit at HEAD
bench: $(READY)
	$(BIN)/asv machine --yes
	$(BIN)/asv run --quick --show-stderr -e 'HEAD^!'

# the site: docs/_build/html/index.html, which needs no network
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# types are checked on an installed copy: no checker sees the mapping of the three folders
lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@rm -rf .types && $(BIN)/pip install -qq --disable-pip-version-check --no-deps --target .types . && rm -rf build
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml --python-executable ../$(BIN)/python -p fwbench
	$(BIN)/python -m pytest tests/test_floors.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

mini: $(READY)
	$(BIN)/python -m fwbench.problems.mini

clean:
	rm -rf .venv .types build dist *.egg-info reports/latest .asv docs/_build docs/reports
