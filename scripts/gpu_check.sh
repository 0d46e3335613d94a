#!/bin/sh
# What is written for a GPU and has not been run on one: the tests there, then throughput against published figures.
# Needs a Python environment with burnish, its extras demo and lora, pytest, and a torch that sees the GPU.
set -eu
cd "$(dirname "$0")/.."
python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "gpu_check: torch finds no GPU")'
python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
# model.device is auto: the tests that load a model load it onto the GPU
python -m pytest -q tests/losses tests/models tests/training tests/rollout tests/memory
python scripts/gpu_throughput.py --tokens 8192
python scripts/gpu_throughput.py --tokens 16384 --branches 8
