#!/usr/bin/env bash
# What an accelerator is asked: costs, equality with the CPU, and the training of the paper's All-CNN. Under ten minutes.
#
#   benchmarks/gpu.sh DATA OUTPUT [--small]    # DATA: folder with train, train_rest and test.parquet of CIFAR-10, or their .npz
#
# Needs this tree, that folder, and a Python with torch and the dependencies of hf_kd (PYTHON=python3). With --small it
# tries the whole way in a minute on any machine.
set -euo pipefail
data=$(realpath "$1") output=$(realpath -m "$2") small=${3:-}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$output"
"${PYTHON:-python3}" benchmarks/gpu.py $small | tee "$output/gpu.md"
epochs=50
[ -z "$small" ] || epochs=1
"${PYTHON:-python3}" benchmarks/cifar/train.py --data "$data" --output "$output/networks" $small \
    "allcnn:$epochs" "allcnn-deer:$epochs"
