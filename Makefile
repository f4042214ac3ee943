# Two commands: `make study` trains and reports the quick study, `make test` runs the tests. Both set up what they need.

VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: study test check setup clean

study: $(VENV)/ready
	$(RUN)/syncnorm run experiments/batch_size.py --quick

test: $(VENV)/ready
	$(RUN)/pytest

check: $(VENV)/ready
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy --strict
	$(RUN)/lint-imports

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(VENV)

clean:
	rm -rf $(VENV)
