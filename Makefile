# Two commands: `make study` trains and reports the quick study, `make test` runs the tests. Both set up what they need.

VENV ?= .venv
RUN = $(VENV)/bin
TESTS ?=
WORKERS ?= 2

.PHONY: study test test-processes check coverage docs gpu gpu-small faults setup clean

study: $(VENV)/ready
	@echo "make study: training the quick study, some minutes on two cores; the first line of progress comes within one" >&2
	$(RUN)/syncnorm run experiments/batch_size.py --quick

# Two processes share the tests, file by file (the longest first: tests/order.py), with one thread each: they start
# further processes of their own.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

# The tests for which real processes are the point: ranks, workers, kills, full disks.
test-processes: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "(dist or fault) and not slow and not gpu" $(TESTS)

check: $(VENV)/ready
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy --strict
	$(RUN)/lint-imports
	$(MAKE) docs

# Tracing makes the tests take 1.4 to 1.7 times as long, so it is no part of `make test`.
coverage: $(VENV)/ready
	$(RUN)/pytest $(TESTS) --cov --cov-report=term

# Checks and measurements on this machine's GPUs, part by part: results/gpu.
gpu: $(VENV)/ready
	PYTHON=$(abspath $(RUN)/python) sh launch/gpu.sh

# The same in small, on a CPU: shows that it runs, and measures nothing.
gpu-small: $(VENV)/ready
	OMP_NUM_THREADS=1 PYTHON=$(abspath $(RUN)/python) sh launch/gpu.sh --device cpu --again

# Kills, odd ranks, disks, clocks and writers, case by case, and their counts: results/faults.txt.
faults: $(VENV)/ready
	$(RUN)/python tests/faults/campaign.py

# The manual as a site in site/; links between its pages, and their anchors, are checked.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(VENV)

clean:
	rm -rf $(VENV)
