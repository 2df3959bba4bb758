# make demo    set up, write synthetic films, judge them, print the table (no torch)
# make test    set up, run the tests
# make lint    set up, run ruff, mypy, shellcheck, codespell and validate-pyproject
# make model   train, export and measure the shipped model (needs DATA; about ten minutes)
# make browser install Chromium for the report's test, where that needs no password
# make bench   measure speed on this machine (needs DATA)

PYTHON ?= python3
DATA ?= $(or $(DEEPCOVID_XRAY),../shared/xray)
WEIGHTS ?= $(firstword $(wildcard $(DATA)/../weights/squeezenet1_1-imagenet.safetensors))
RUNS ?= runs
RESULTS = benchmarks/results/accuracy
MODELS = deepcovid_edge/models

BROWSERS = chromium chromium-browser google-chrome google-chrome-stable

DEV = .venv/bin
DEMO = .venv-demo/bin

.PHONY: demo test lint browser model resnet18 bench wheel clean

demo: .venv-demo/ready
	$(DEMO)/deepcovid-edge sample demo-films
	$(DEMO)/deepcovid-edge infer demo-films -o demo.jsonl
	$(DEMO)/deepcovid-edge infer demo-films --table

test: .venv/ready
	$(DEV)/python -m pytest

lint: .venv/ready
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/ruff check jetson/selftest
	$(DEV)/ruff format --check jetson/selftest
	$(DEV)/mypy
	$(DEV)/shellcheck jetson/install.sh
	$(DEV)/codespell $$(git ls-files '*.md' '*.py' '*.toml' '*.sh' '*.yml')
	$(DEV)/validate-pyproject pyproject.toml

# Asks for nothing: without root or a password-free sudo the report's browser test skips.
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	as=; [ "$$(id -u)" = 0 ] || as="sudo -n"; \
	{ command -v apt-get >/dev/null && $$as apt-get -q update && \
		$$as apt-get -q install -y --no-install-recommends chromium; } || \
	echo "no browser: the report's browser test will skip (apt-get install chromium)"

model: .venv/ready
	$(DEV)/deepcovid-edge train --recipe squeezenet1_1 $(DATA) -o $(RUNS)/squeezenet1_1 --resume \
		$(if $(WEIGHTS),--weights $(WEIGHTS))
	$(DEV)/deepcovid-edge export $(RUNS)/squeezenet1_1/checkpoint.pt --check $(DATA) \
		-o $(MODELS)/squeezenet1_1.onnx
	$(DEV)/deepcovid-edge quantize squeezenet1_1 --precision int8 --for cpu --calibration $(DATA) \
		--verify $(DATA) --split test -o $(MODELS)/squeezenet1_1-int8-cpu.onnx
	for split in test external paediatric; do \
		$(DEV)/deepcovid-edge evaluate squeezenet1_1 $(DATA) --split $$split \
			--shortcuts -o $(RESULTS)/squeezenet1_1-$$split.json || exit 1; \
	done
	$(DEV)/python -m deepcovid_export.model_card squeezenet1_1 --results $(RESULTS) \
		-o $(MODELS)/squeezenet1_1.md

resnet18: .venv/ready
	$(DEV)/deepcovid-edge train --recipe resnet18 $(DATA) -o $(RUNS)/resnet18 --resume --from-scratch
	$(DEV)/deepcovid-edge export $(RUNS)/resnet18/checkpoint.pt --check $(DATA) -o $(RUNS)/resnet18.onnx
	for split in test external paediatric; do \
		$(DEV)/deepcovid-edge evaluate $(RUNS)/resnet18.onnx $(DATA) --split $$split \
			--shortcuts -o $(RESULTS)/resnet18-$$split.json || exit 1; \
	done

bench: .venv/ready
	$(DEV)/python benchmarks/infer_speed.py --data $(DATA)
	$(DEV)/python benchmarks/footprint.py --data $(DATA)
	$(DEV)/python benchmarks/tables.py

wheel: .venv/ready
	$(DEV)/python -m pip wheel -q --no-deps -w dist .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(DEV)/python -m pip install -q --upgrade pip
	$(DEV)/python -m pip install -q -e '.[cpu,rtx,export,dev]' -c constraints.txt
	touch $@

# Installed as a user installs it, from a wheel; made again when the package changes.
.venv-demo/ready: pyproject.toml $(shell find deepcovid_edge -type f -not -name '*.pyc')
	$(PYTHON) -m venv .venv-demo
	$(DEMO)/python -m pip install -q --upgrade pip
	$(DEMO)/python -m pip install -q '.[cpu]'
	touch $@

clean:
	rm -rf .venv .venv-demo build dist demo-films demo.jsonl
