# make demo    set up, write synthetic images, classify them, print the table (no torch)
# make test    set up, run the tests
# make test-without-int8  those that let the processor decide on INT8, as on one without VNNI
# make quick   set up, run the unit tests that are not slow (90 seconds)
# make nightly  the slow tests, 20,000 damaged files, and the comparison with other readers
# make docs    build the pages of docs/ into build/docs
# make lint    set up, run ruff, mypy, shellcheck, codespell and validate-pyproject
# make appearances train networks of four classes, for their table (needs DATA; hours)
# make one-cycle train ResNet50 with a range test and one cycle, for its table (needs DATA; an hour)
# make figures train the paper's way and the larger networks, for their figures (needs DATA; hours)
# make model   train, export, quantise and measure what ships (needs DATA, SIIM, SITES; two hours)
# make site    what a site check says of the shipped model at hospitals it has never seen (needs DATA)
# make browser install Chromium for the report's test, where that needs no password
# make peers   install the programs that write and read images beside us in tests, likewise
# make fuzz    20,000 damaged files; what breaks a rule is kept in runs/fuzz
# make witnesses  2,000 DICOM images and 2,000 pictures, read by us and by independent readers
# make triton  a Triton server for its tests, in an environment of its own (1 GB)
# make campaigns  faults against a whole cart, 200 of each kind, a week of it, and its speed; hours
# make aarch64 install, run and compare on aarch64 under emulation (needs root and DATA; an hour)
# make aarch64-short  selftest and 20 images of it, ten minutes once the chroot is made
# make archive-campaigns  speed, memory and faults of an archive's run, on Ray too (needs DATA; an hour)
# make release build sdist and wheel, check both, run the demo from the wheel alone
# make bench   measure speed and check equivalence on this machine (needs DATA; half an hour)
# make bench-compare  measure the suite again and compare with what is stored

PYTHON ?= python3
DATA ?= $(or $(DEEPCOVID_XRAY),../shared/xray)
SIIM ?= $(DATA)/../siim
SITES ?= $(DATA)/../sites
WEIGHTS ?= $(firstword $(wildcard $(DATA)/../weights/squeezenet1_1-imagenet.safetensors))
RUNS ?= runs
RESULTS = benchmarks/results

BROWSERS = chromium chromium-browser google-chrome google-chrome-stable

DEV = .venv/bin
DEMO = .venv-demo/bin

.PHONY: demo test quick nightly test-without-int8 lint docs browser peers triton model site figures appearances one-cycle fuzz witnesses campaigns archive-campaigns aarch64 aarch64-short aarch64-programs bench bench-compare wheel release clean

# Some of the images cannot be assessed, which is exit code 4.
demo: .venv-demo/ready
	$(DEMO)/deepcovid-edge sample demo-images >/dev/null
	$(DEMO)/deepcovid-edge infer demo-images --table || [ $$? = 4 ]
	$(DEMO)/deepcovid-edge heatmap demo-images/phantom_003.png -o demo-heatmaps --budget 2s --table

# A process a core and one more, since many tests wait; each with one thread for its products.
test: .venv/ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(DEV)/python -m pytest -m "not slow" -n $$(( $$(nproc) + 1 )) --dist loadscope --no-loadscope-reorder \
		--durations=20

# What is not for every change: training, large networks, quantising real networks.
nightly: .venv/ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(DEV)/python -m pytest -m slow -n $$(nproc) --dist loadscope --durations=20
	$(MAKE) fuzz witnesses campaigns aarch64

# The unit tests of the runtime: no slow one, no integration.
QUICK_IGNORES = export benchmarks jetson imaging/test_dicom_matrix.py imaging/test_dicom_sandbox.py \
	imaging/test_fuzz.py imaging/test_witnesses.py device/test_child_process.py \
	heatmaps/test_incremental.py heatmaps/test_heatmap.py heatmaps/test_agreement.py
quick: .venv/ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(DEV)/python -m pytest tests/unit -m "not slow" -n $$(nproc) --durations=20 \
		$(QUICK_IGNORES:%=--ignore=tests/unit/%)

# The processor of whoever develops hides what another without VNNI decides.
test-without-int8: .venv/ready
	DEEPCOVID_EDGE_INT8=off OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(DEV)/python -m pytest -m "int8 and not slow" -n $$(nproc) --dist loadscope --no-loadscope-reorder

lint: .venv/ready
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/ruff check jetson/selftest
	$(DEV)/ruff format --check jetson/selftest
	$(DEV)/mypy
	$(DEV)/shellcheck jetson/install.sh pc/install.sh
	$(DEV)/codespell $$(git ls-files '*.md' '*.py' '*.toml' '*.sh' '*.yml')
	$(DEV)/validate-pyproject pyproject.toml

# A warning is an error. Open build/docs/docs/index.html.
docs: .venv/ready
	$(DEV)/python -m sphinx -W --keep-going -q -c docs . build/docs

# Asks for nothing: without root or a password-free sudo the report's browser test skips.
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	as=; [ "$$(id -u)" = 0 ] || as="sudo -n"; \
	{ command -v apt-get >/dev/null && $$as apt-get -q update && \
		$$as apt-get -q install -y --no-install-recommends chromium; } || \
	echo "no browser: the report's browser test will skip (apt-get install chromium)"

# As for the browser: without them tests of what they write and read skip.
# Debian starts a server that it installs; the policy keeps Orthanc from listening on this machine.
PEERS = dcmtk libgdcm-tools libopenjp2-tools openjph-tools libjpeg-turbo-progs libtiff-tools webp \
	graphicsmagick orthanc orthanc-dicomweb dicom3tools faketime
PEER_PROGRAMS = dcmcjpls gdcmconv opj_compress ojph_compress jpegtran tiffcp cwebp gm Orthanc \
	dciodvfy faketime
POLICY = /usr/sbin/policy-rc.d
peers:
	@lacks=; for name in $(PEER_PROGRAMS); do command -v $$name >/dev/null || lacks=1; done; \
	[ -n "$$lacks" ] || exit 0; \
	as=; [ "$$(id -u)" = 0 ] || as="sudo -n"; \
	made=; command -v apt-get >/dev/null && [ ! -e $(POLICY) ] && made=1 && \
		printf '#!/bin/sh\nexit 101\n' | $$as tee $(POLICY) >/dev/null && $$as chmod 755 $(POLICY); \
	{ command -v apt-get >/dev/null && $$as apt-get -q update && \
		$$as apt-get -q install -y --no-install-recommends $(PEERS); } || \
	echo "tests that need $(PEERS) will skip (apt-get install)"; \
	[ -z "$$made" ] || $$as rm -f $(POLICY) || true

# The Python backend of the Triton that a package holds reads tensors of NumPy 2 wrongly.
TRITON = $(or $(DEEPCOVID_EDGE_TRITON),$(HOME)/.cache/deepcovid-edge/triton)
triton: $(TRITON)/ready
$(TRITON)/ready: Makefile
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install -q 'numpy==1.26.*' 'nvidia-pytriton>=0.7' \
		'tritonclient[http,grpc]>=2.50' 'opencv-python-headless>=4.11,<4.12' \
		'onnxruntime>=1.19' 'pillow>=11' 'simplejpeg>=1.8' 'click>=8.1' 'rich>=13' \
		'pydicom>=3' 'imagecodecs>=2025.3.30,<2025.8'
	touch $@

model: model-squeezenet1_1
	$(MAKE) site

# SqueezeNet ships. ResNet18 does not: on val it is not as good. Tests and benchmarks need it.
PLACE_squeezenet1_1 = deepcovid_edge/models
PLACE_resnet18 = benchmarks/models
START_squeezenet1_1 = $(if $(WEIGHTS),--weights $(WEIGHTS))
START_resnet18 = --from-scratch
EXPORT_resnet18 = --half-weights
# Of many sources, 128 images say too little of the ranges.
QUANTIZE_squeezenet1_1 = --images 512
# What a network is trained on, and what it is fitted and compared on: the splits of its run.
TRAIN_squeezenet1_1 = $(DATA) $(SIIM) $(SITES) --exclude-leaks
TRAIN_resnet18 = $(DATA)
FIT_squeezenet1_1 = $(RUNS)/squeezenet1_1/splits.csv
FIT_resnet18 = $(DATA)
# Children are recognised, not learned.
CHILDREN_squeezenet1_1 = --children $(DATA)
# SIIM has labels that ResNet18's recipe does not name.
SIIM_squeezenet1_1 = $(SIIM)
# Heat maps of its INT8 variant beside FP32. ResNet18's would take half an hour and are in no table.
MAPS_squeezenet1_1 = $(RESULTS)/heatmap/precision-squeezenet1_1-int8-cpu.json

model-%: .venv/ready
	$(DEV)/deepcovid-edge train --recipe $* $(TRAIN_$*) -o $(RUNS)/$* --resume $(START_$*)
	$(DEV)/deepcovid-edge export $(RUNS)/$*/checkpoint.pt --check $(FIT_$*) --fit $(FIT_$*) \
		$(CHILDREN_$*) $(EXPORT_$*) -o $(PLACE_$*)/$*.onnx
	$(MAKE) variants-$*

# Everything that is made of an exported file. `equivalence-` fits its out-of-distribution limits again first.
equivalence-%: .venv/ready
	$(DEV)/deepcovid-edge export $(PLACE_$*)/$*.onnx --fit $(FIT_$*) $(CHILDREN_$*) -o $(PLACE_$*)/$*.onnx
	$(MAKE) variants-$*

variants-%: .venv/ready
	$(DEV)/deepcovid-edge quantize $(PLACE_$*)/$*.onnx --precision int8 --for cpu \
		$(QUANTIZE_$*) --calibration $(FIT_$*) --verify $(FIT_$*) --split test \
		-o $(PLACE_$*)/$*-int8-cpu.onnx
	$(DEV)/deepcovid-edge quantize $(PLACE_$*)/$*.onnx --precision int8 --for tensorrt \
		$(QUANTIZE_$*) --calibration $(FIT_$*) -o $(RUNS)/variants/$*-int8-tensorrt.onnx
	$(if $(MAPS_$*),$(DEV)/deepcovid-edge verify $(PLACE_$*)/$*.onnx $(PLACE_$*)/$*-int8-cpu.onnx \
		$(DATA) --split val --heatmap -o $(MAPS_$*) || [ $$? = 3 ])
	$(DEV)/python -m benchmarks.accuracy --data $(DATA) --model $*
	$(MAKE) accuracy-$*
	$(DEV)/python -m benchmarks.ood --data $(DATA) --model $(PLACE_$*)/$*.onnx \
		--model $(PLACE_$*)/$*-int8-cpu.onnx

# What a model says of images that were not used to make it, and its card.
EVALUATE = $(DEV)/deepcovid-edge evaluate $(PLACE_$*)/$*.onnx
accuracy-%: .venv/ready
	for split in test external paediatric; do \
		$(EVALUATE) $(DATA) --split $$split --shortcuts \
			-o $(RESULTS)/accuracy/$*-$$split.json || exit 1; \
	done
	$(if $(SIIM_$*),$(EVALUATE) $(SIIM_$*) --split test --shortcuts --name "SIIM test" \
		--occlusion-images 300 -o $(RESULTS)/accuracy/$*-siim-test.json)
	$(EVALUATE) $(SITES) --split external --name "further sites" \
		-o $(RESULTS)/accuracy/$*-sites-external.json
	$(DEV)/python -m deepcovid_export.report.model_card $(PLACE_$*)/$*.onnx \
		--results $(RESULTS)/accuracy -o $(PLACE_$*)/$*.md

# The verdict is expected to be another than `usable`, which is exit code 3.
CHECK = $(DEV)/deepcovid-edge site-check --backend onnxruntime --variant
site: .venv/ready
	$(CHECK) fp32 $(DATA) --split external --source agchung/Actualmed-COVID-chestxray-dataset \
		--name Actualmed -o $(RESULTS)/site/actualmed.json || [ $$? = 3 ]
	$(CHECK) fp32 $(SITES) --split external --source "TB set via GitKentC/lundis, 256 px" \
		--name "TB screening, normal" -o $(RESULTS)/site/tb-normal.json || [ $$? = 3 ]
	for split in test external; do $(CHECK) fp32 $(DATA) --split $$split --name $$split \
		-o $(RESULTS)/site/$$split.json || [ $$? = 3 ] || exit 1; done
	$(CHECK) fp32 $(SIIM) --split test --name "SIIM, test" \
		-o $(RESULTS)/site/siim-test.json || [ $$? = 3 ]
	$(CHECK) int8-cpu $(SIIM) --split test --name "SIIM, test" \
		-o $(RESULTS)/site/siim-test-int8.json || [ $$? = 3 ]
	$(DEV)/python -m benchmarks.tables.write

# Trained for their figures alone: the paper's way, the network that shipped before, and the larger
# networks. None is kept here.
FIGURES = paper_squeezenet1_1 plain_squeezenet1_1 resnet50 densenet121
START_paper_squeezenet1_1 = $(if $(WEIGHTS),--weights $(WEIGHTS))
START_plain_squeezenet1_1 = $(START_paper_squeezenet1_1)
START_resnet50 = --from-scratch
START_densenet121 = --from-scratch

figures: $(FIGURES:%=figures-%)
	for split in test external; do \
		$(DEV)/deepcovid-edge evaluate squeezenet1_1 $(PLACE_resnet18)/resnet18.onnx \
			$(FIGURES:%=$(RUNS)/%.onnx) $(DATA) --split $$split \
			-o $(RUNS)/report/$$split || exit 1; \
	done

figures-%: .venv/ready
	$(DEV)/deepcovid-edge train --recipe $* $(DATA) -o $(RUNS)/$* --resume $(START_$*)
	$(DEV)/deepcovid-edge export $(RUNS)/$*/checkpoint.pt --check $(DATA) -o $(RUNS)/$*.onnx
	for split in test external paediatric; do \
		$(DEV)/deepcovid-edge evaluate $(RUNS)/$*.onnx $(DATA) --split $$split --shortcuts \
			-o $(RESULTS)/accuracy/$*-$$split.json || exit 1; \
	done
	$(DEV)/deepcovid-edge evaluate $(RUNS)/$*.onnx $(SITES) --split external \
		--name "further sites" -o $(RESULTS)/accuracy/$*-sites-external.json

# Four appearances, for their table (needs DATA; hours). The images of SIIM tell three of them apart.
APPEARANCES = small_cnn small_cnn_plain resnet18_scratch
appearances: $(APPEARANCES:%=appearances-four_appearances_%)
	$(DEV)/python -m benchmarks.tables.write

appearances-%: .venv/ready
	$(DEV)/deepcovid-edge train --recipe $* $(TRAIN_squeezenet1_1) -o $(RUNS)/$* --resume --from-scratch
	$(DEV)/deepcovid-edge export $(RUNS)/$*/checkpoint.pt --check $(RUNS)/$*/splits.csv -o $(RUNS)/$*.onnx
	$(DEV)/deepcovid-edge evaluate $(RUNS)/$*.onnx $(DATA) --also $(SIIM) --split test --shortcuts \
		--occlusion-images 0 -o $(RESULTS)/appearances/$*.json

# A range test, then one cycle: what it suggests, and what came of it.
ONE_CYCLE = one_cycle_resnet50_scratch
one-cycle: .venv/ready
	$(DEV)/deepcovid-edge train --recipe $(ONE_CYCLE) $(TRAIN_squeezenet1_1) -o $(RUNS)/$(ONE_CYCLE) --resume
	$(DEV)/deepcovid-edge export $(RUNS)/$(ONE_CYCLE)/checkpoint.pt \
		--check $(RUNS)/$(ONE_CYCLE)/splits.csv -o $(RUNS)/$(ONE_CYCLE).onnx
	$(DEV)/deepcovid-edge evaluate $(RUNS)/$(ONE_CYCLE).onnx $(RUNS)/$(ONE_CYCLE)/splits.csv --split test \
		--shortcuts --occlusion-images 0 -o $(RESULTS)/one-cycle/$(ONE_CYCLE).json
	cp $(RUNS)/$(ONE_CYCLE)/learning_rate.json $(RESULTS)/one-cycle/
	$(DEV)/python -m benchmarks.tables.write

fuzz: .venv/ready
	PYTHONPATH=tests/unit/imaging $(DEV)/python tests/fuzz.py --inputs 20000

# What disagrees is kept in runs/witnesses. STORE=--store stores the counts.
witnesses: .venv/ready
	PYTHONPATH=.:tests $(DEV)/python -m witnesses.run --keep $(RUNS)/witnesses $(STORE)

# CAMPAIGNS="kill power" runs these alone. Power cuts and full disks need root. STORE=--store stores.
CYCLES ?= 200
campaigns: .venv/ready
	PYTHONPATH=.:export:tests $(DEV)/python -m campaigns.run $(CAMPAIGNS) --cycles $(CYCLES) $(STORE)

# Real packages for arm64, run by qemu. What is made and fetched there is kept; where this is not
# root, the reason is printed. STORE=--store stores. AARCH64="checks" runs that part alone.
AARCH64_ROOT ?= /var/tmp/deepcovid-edge-aarch64
AARCH64_PROGRAMS = debootstrap qemu-user-static binfmt-support iproute2 g++-aarch64-linux-gnu
RUN_AARCH64 = PYTHONPATH=.:export:tests $(DEV)/python -m aarch64.run $(AARCH64) \
	--root $(AARCH64_ROOT) --data $(DATA)
aarch64: aarch64-programs peers
	$(RUN_AARCH64) $(STORE)
	$(RUN_AARCH64) --suite trixie --short $(STORE)

aarch64-short: aarch64-programs peers
	$(RUN_AARCH64) --short

aarch64-programs: .venv/ready
	@[ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		(for name in debootstrap qemu-aarch64-static ip aarch64-linux-gnu-g++; do \
			command -v $$name || exit 1; done) >/dev/null || \
		{ apt-get -q update && \
			apt-get -q install -y --no-install-recommends $(AARCH64_PROGRAMS); }

# ARCHIVE_IMAGES is the number of images of the speed; STORE=--store stores the figures.
ARCHIVE_IMAGES ?= 5000
ARCHIVE = PYTHONPATH=.:export:tests $(DEV)/python -m benchmarks.archive
archive-campaigns: .venv/ready
	$(ARCHIVE).costs $(STORE)
	$(ARCHIVE).speed --data $(DATA) --images $(ARCHIVE_IMAGES) $(STORE)
	$(ARCHIVE).memory --data $(DATA) $(STORE)
	$(ARCHIVE).faults --data $(DATA) $(STORE)
	$(DEV)/python -m benchmarks.tables.write

export RUNS

bench: .venv/ready
	$(DEV)/python -m benchmarks.run_all --data $(DATA)

# A second run of the suite into a folder of its own, held against the stored results.
bench-compare: .venv/ready
	$(DEV)/python -m benchmarks.suites.run --data $(DATA) -o $(RUNS)/bench-again --against

wheel: .venv/ready
	$(DEV)/python -m pip wheel -q --no-deps -w dist .

# Nothing is published. The demo runs from the wheel alone, in a folder and an environment without
# the checkout.
MOST_BYTES = 6000000
FRESH = build/release
release: .venv/ready
	rm -rf dist $(FRESH)
	grep -q "^## \[$$($(DEV)/python -c 'import deepcovid_edge as it; print(it.__version__)')\] - " \
		CHANGELOG.md
	$(DEV)/python -m build -o dist .
	$(DEV)/twine check --strict dist/*
	[ $$(stat -c %s dist/*.whl) -lt $(MOST_BYTES) ]
	$(PYTHON) -m venv $(FRESH)/venv
	$(FRESH)/venv/bin/python -m pip install -q "$$(ls dist/*.whl)[cpu,dicom]"
	cd $(FRESH) && venv/bin/deepcovid-edge sample images >/dev/null
	cd $(FRESH) && venv/bin/deepcovid-edge infer images --html report --table || [ $$? = 4 ]
	cd $(FRESH) && [ -s report/index.html ] && venv/bin/deepcovid-edge info
	ls -l dist

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(DEV)/python -m pip install -q --upgrade pip
	$(DEV)/python -m pip install -q -e '.[cpu,dicom,cart,serve,archive,ray,openvino,rtx,export,docs,dev]' -c constraints.txt
	touch $@

# Installed as a user installs it, from a wheel; made again when the package changes.
.venv-demo/ready: pyproject.toml $(shell find deepcovid_edge -type f -not -name '*.pyc')
	$(PYTHON) -m venv .venv-demo
	$(DEMO)/python -m pip install -q --upgrade pip
	$(DEMO)/python -m pip install -q '.[cpu,dicom]'
	touch $@

clean:
	rm -rf .venv .venv-demo build dist demo-images demo-heatmaps
