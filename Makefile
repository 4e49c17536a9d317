# SPDX-License-Identifier: Apache-2.0
# make demo | test | python-test | wheel | slow | bench | tune | format | clean. Each sets up what it needs (tools/setup.sh) and builds in build/cpu.
BUILD := build/cpu
JOBS ?= $(shell nproc)
CMAKE_ARGS ?=
MODEL := models/reference-lm
# The cache of an earlier `make test` stays valid: both use one folder, and the demo only leaves the tests out.
CONFIGURE = cmake --preset cpu $(CMAKE_ARGS)

.PHONY: help demo test python-test wheel slow bench tune format clean
help:
	@echo 'make demo    install what is missing, build, compare methods on a real document: writes report.html and out.json'
	@echo 'make test    install what is missing, build everything, run the tests (all but those labelled slow)'
	@echo 'make python-test   build the Python package, check its types, run its tests (fetches torch from PyPI into build/python-venv)'
	@echo 'make wheel   make a wheel of the Python package that other machines can use, and the sdist, in build/wheel'
	@echo 'make slow    as test, then the slow tests: quality on both documents at 16,384 bytes'
	@echo 'make bench   time the kernels against the peak of this machine, on an otherwise idle one; writes bench/results and docs/performance.md'
	@echo 'make tune    every method with the fastest setting that holds quality, tuned on one document and quoted on the other (about 5 minutes on 2 idle'
	@echo '             cores); writes report.html, bench/results, docs/performance.md and, where chromium is installed, docs/images/report.png'
	@echo 'make format  clang-format-19 over the C++ files that git knows'
	@echo 'make clean   remove build/'

demo:
	tools/setup.sh demo
	$(CONFIGURE) -DTILEWISE_WITH_TESTS=OFF
	cmake --build $(BUILD) --parallel $(JOBS) --target tilewise
	$(BUILD)/app/tilewise compare --model $(MODEL) --text $(MODEL)/documents/postgresql-wal.txt --length 16384 --needle 4096 \
	  --report report.html --json out.json
	@echo 'The report lies in $(CURDIR)/report.html (one file, opens offline), the figures in $(CURDIR)/out.json'

test:
	tools/setup.sh test
	$(CONFIGURE) -DTILEWISE_WITH_TESTS=ON
	cmake --build $(BUILD) --parallel $(JOBS)
	ctest --preset cpu --parallel $(JOBS)

python-test:
	tools/setup.sh python
	$(CONFIGURE)
	tools/python_test.sh $(BUILD)

wheel:
	tools/setup.sh python
	$(CONFIGURE)
	tools/wheel.sh $(BUILD)
	@ls build/wheel/tilewise-*

slow: test
	ctest --preset slow --parallel 1

bench:
	tools/setup.sh demo
	$(CONFIGURE) -DTILEWISE_WITH_TESTS=OFF
	cmake --build $(BUILD) --parallel $(JOBS) --target tilewise
	$(BUILD)/app/tilewise bench --bars
	tools/performance_tables.py $$(ls -t bench/results/*-cpu-*.json | head -1)

tune:
	tools/setup.sh demo
	$(CONFIGURE) -DTILEWISE_WITH_TESTS=OFF
	cmake --build $(BUILD) --parallel $(JOBS) --target tilewise
	$(BUILD)/app/tilewise compare --model $(MODEL) --text $(MODEL)/documents/postgresql-wal.txt $(MODEL)/documents/python-http-client.txt \
	  --tune --needle 8192 --report report.html --json out.json
	tools/performance_tables.py --tune out.json
	if command -v chromium >/dev/null; then \
	  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,2040 --screenshot=docs/images/report.png file://$(CURDIR)/report.html; fi

format:
	tools/setup.sh format
	git ls-files -z '*.h' '*.cpp' '*.cuh' '*.cu' | xargs -0 clang-format-19 -i

clean:
	rm -rf build
