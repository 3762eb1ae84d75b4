# Each target sets up what it needs: its own .venv, stamped, so that a second run is fast.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
MYPY_PATH := build/path

.PHONY: demo demo-oldest test test-long test-slow check docs format bench train-tiny regression accept-regression clean

demo: $(STAMPS)/run  ## convert the tiny model at four levels, look at it, verify it, speak with it
	rm -rf demo
	$(BIN)/miso-convert tiny --quant q4_k_m --quant q8_0 --quant fp16 --quant q4_0 --out demo
	$(BIN)/miso-convert inspect demo
	$(BIN)/miso-convert verify demo tiny
	$(BIN)/miso-speak "Hello there. This is very good." --model demo --quant q4_k_m --out demo/hello.wav

demo-oldest:  ## the demo with the lowest version of every package that is required, in an environment of its own
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet uv
	build/oldest/bin/uv pip install --python build/oldest/bin/python --resolution lowest-direct --editable '.[hub]'
	mkdir -p build/oldest/stamps && touch build/oldest/stamps/run
	$(MAKE) demo VENV=build/oldest

# Two processes of one thread each; the one that is done first takes over from the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: $(STAMPS)/dev  ## the test suite
	$(PYTEST)

test-long: $(STAMPS)/dev  ## soaks, browser, installations; and every property test with ten times the examples
	MISO_EXAMPLES_TIMES=10 $(PYTEST) -m 'long or hypothesis'

test-slow: $(STAMPS)/dev  ## minutes and tens of gigabytes: the full-size runs
	$(BIN)/python -m pytest -m slow

check: $(STAMPS)/dev  ## ruff, mypy --strict, and whether the tables of files are what the docstrings say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy __init__.py console.py convert core hub models native quant_eval runtime
	@# The root is the package: tests and benchmarks see it under its name through a link.
	mkdir -p $(MYPY_PATH) && ln -sfn ../.. $(MYPY_PATH)/miso_gguf
	MYPYPATH=$(MYPY_PATH):docs:tests:benchmarks:benchmarks/gpu $(BIN)/mypy --explicit-package-bases docs tests benchmarks
	$(BIN)/python docs/file_tables.py --check

docs: $(STAMPS)/dev  ## write the tables of files in README and docs, and docs/inputs.md
	$(BIN)/python docs/file_tables.py
	PYTHONPATH=tests $(BIN)/python docs/inputs.py

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/dev  ## conversion, codec and frame, each against its baseline
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/codec.py
	$(BIN)/miso-convert tiny --quant q4_k_m --out build/tiny
	$(BIN)/python benchmarks/frame.py build/tiny

REPORT := build/regression/report
ACCEPTED := quant_eval/baselines/tiny.json

regression: $(STAMPS)/eval  ## evaluate four levels of the tiny model, and hold it against the accepted evaluation
	rm -rf build/regression
	$(BIN)/miso-convert tiny --quant fp16 --quant q8_0 --quant q4_k_m --quant q4_0 --out build/regression/bundle
	$(BIN)/miso-eval run build/regression/bundle --processes 2 --threads 1 --history $(ACCEPTED) --out $(REPORT)

accept-regression:  ## make what `make regression` last found the accepted evaluation; then commit it, and say why
	$(BIN)/miso-eval accept $(REPORT) $(ACCEPTED)

train-tiny: $(STAMPS)/dev  ## make the tiny model anew: an hour and a half on two cores; needs espeak-ng
	$(BIN)/python -m miso_gguf.models.tiny.make

clean:
	rm -rf $(VENV) build demo dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/run: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/eval: $(STAMPS)/run
	$(BIN)/pip install --quiet --editable '.[eval]'
	touch $@

$(STAMPS)/dev: $(STAMPS)/run
	$(BIN)/pip install --quiet --editable '.[dev]'
	@# The Mimi oracle. It pins torch and numpy far below ours, and works with ours.
	$(BIN)/pip install --quiet --no-deps 'moshi==0.2.13'
	touch $@
