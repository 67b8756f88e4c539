# Every target sets up .venv by itself; a machine needs Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := captune-results/demo-images

S3_STAMP := .venv-s3/.installed

.PHONY: install demo test lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[pretrained,onnx,dev]'
	touch $@

# The main job on drawn scenes: tune, which ends with table and best trial, then caption three new scenes.
demo: $(STAMP)
	rm -rf captune-results/shapes
	$(BIN)/captune run examples/shapes.yaml
	$(BIN)/python examples/draw_scenes.py $(DEMO)
	$(BIN)/captune caption shapes $(DEMO)/*.png

# A local S3 server for the tests, in an environment of its own: it wants older packages than Captune.
$(S3_STAMP): tests/s3-server.txt
	test -x .venv-s3/bin/python || $(PYTHON) -m venv .venv-s3
	.venv-s3/bin/python -m pip install --quiet -r $<
	touch $@

test: $(STAMP) $(S3_STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf .venv .venv-s3 dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
