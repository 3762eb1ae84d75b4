# Each target sets up what it needs: its own .venv, stamped, so that a second run is fast.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
MYPY_PATH := build/path
PACKAGE := __init__.py console.py convert core hub models native quant_eval recipes runtime serve

.PHONY: demo demo-oldest serve test test-long test-slow test-instruments check docs format bench train-tiny \
	regression accept-regression regression-avx2 accept-regression-avx2 nightly clean

demo: $(STAMPS)/run  ## convert the tiny model at four levels, look at it, verify it, speak with it
	rm -rf demo
	$(BIN)/miso-convert tiny --quant q4_k_m --quant q8_0 --quant fp16 --quant q4_0 --out demo
	$(BIN)/miso-convert inspect demo
	$(BIN)/miso-convert verify demo tiny
	$(BIN)/miso-speak "Hello there. This is very good." --model demo --quant q4_k_m --out demo/hello.wav

serve: $(STAMPS)/serve build/tiny/q4_k_m  ## serve the tiny model at http://127.0.0.1:8080
	$(BIN)/miso-serve --model build/tiny --quant q4_k_m --voices build/voices

# A stamp: what the level's files are called is the converter's matter.
build/tiny/q4_k_m: | $(STAMPS)/run
	$(BIN)/miso-convert tiny --quant q4_k_m --out build/tiny
	touch $@

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

test-instruments: $(STAMPS)/dev  ## what others' instruments hear: installs them (and needs the program flite)
	$(BIN)/pip install --quiet --editable '.[instruments]'
	MISO_INSTRUMENTS=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long tests/quant_eval/instruments

check: $(STAMPS)/dev  ## ruff, mypy --strict, and whether the tables of files are what the docstrings say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The root is the package: it is seen under its name through a link, whatever the clone is called.
	mkdir -p $(MYPY_PATH) && ln -sfn ../.. $(MYPY_PATH)/miso_gguf
	MYPYPATH=$(MYPY_PATH):docs:tests:benchmarks:benchmarks/gpu $(BIN)/mypy --explicit-package-bases \
		$(addprefix $(MYPY_PATH)/miso_gguf/,$(PACKAGE)) docs tests benchmarks
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

# The fixed subset that is evaluated: all accepted evaluations are of it.
SUBSET := --corpus tiny --prompts 40 --seeds 2
REGRESSION := build/regression
ACCEPTED := quant_eval/baselines/tiny.json
# Where nothing was accepted yet, neither any history: make regression HISTORY=
HISTORY := --history $(ACCEPTED)

regression: $(STAMPS)/eval  ## evaluate four levels of the tiny model, and hold them against the accepted evaluations
	rm -rf $(REGRESSION)
	$(BIN)/miso-convert tiny --quant fp16 --quant q8_0 --quant q4_k_m --quant q4_0 --out $(REGRESSION)/bundle
	$(BIN)/miso-eval run $(REGRESSION)/bundle $(SUBSET) --processes 2 --threads 1 $(HISTORY) --out $(REGRESSION)/report

# A night's work: all prompts, three seeds, and the ladder. Its corpus is another one, so it is held against no history.
NIGHTLY := build/nightly
LARGE := --corpus tiny-large --seeds 3 --ladder

nightly: $(STAMPS)/eval  ## evaluate the same levels on all prompts with three seeds, and along the ladder of damages
	rm -rf $(NIGHTLY)
	$(BIN)/miso-convert tiny --quant fp16 --quant q8_0 --quant q4_k_m --quant q4_0 --out $(NIGHTLY)/bundle
	$(BIN)/miso-eval run $(NIGHTLY)/bundle $(LARGE) --processes 2 --threads 1 --out $(NIGHTLY)/report

accept-regression:  ## accept what `make regression` last found (FORCE=--force: whatever it says); then commit it
	$(BIN)/miso-eval accept $(REGRESSION)/report $(ACCEPTED) $(FORCE)

# Speech decoheres where a sum is rounded otherwise, so what CI evaluates computes by AVX2 on every x86 machine: llama.cpp
# as built, numpy and OpenBLAS as told. ONNX Runtime cannot be told; it decodes the codes, and decides none.
AVX2 := build/avx2
AS_AVX2 := VENV=$(AVX2) REGRESSION=build/regression-avx2
ONLY_AVX2 := NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" OPENBLAS_CORETYPE=Haswell

regression-avx2: $(AVX2)/stamps/built  ## the same in an environment of its own, whose llama.cpp is built for AVX2
	$(ONLY_AVX2) $(MAKE) regression $(AS_AVX2)

accept-regression-avx2:  ## accept what `make regression-avx2` last found
	$(MAKE) accept-regression $(AS_AVX2)

# pip would take a wheel from its cache that was built with other options.
$(AVX2)/stamps/built: pyproject.toml
	$(PYTHON) -m venv $(AVX2)
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" \
		$(AVX2)/bin/pip install --quiet --no-cache-dir --no-binary llama-cpp-python --editable '.[eval]'
	mkdir -p $(AVX2)/stamps && touch $(AVX2)/stamps/run && touch $(AVX2)/stamps/eval $@

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

$(STAMPS)/serve: $(STAMPS)/run
	$(BIN)/pip install --quiet --editable '.[serve]'
	touch $@

$(STAMPS)/dev: $(STAMPS)/run
	$(BIN)/pip install --quiet --editable '.[dev]'
	@# The Mimi oracle. It pins torch and numpy far below ours, and works with ours.
	$(BIN)/pip install --quiet --no-deps 'moshi==0.2.13'
	touch $@
