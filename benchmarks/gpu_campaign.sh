#!/usr/bin/env bash
# What needs a GPU, in one go. Results go to $1 (default benchmarks/results/gpu).
# Every line is a command a user could type; run it where a CUDA device is, and commit what it leaves.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
run="python -m qdeploy"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/device.csv"

# Memory and images/s of the reported model against the paper's P100 (9.2 GB, 333 s for 80,000 images), AMP on.
for amp in auto fp16 off; do
    $run train fashion-mnist --model qonstraint-5.9-gap --recipe confidence --lr 5e-4 --batch-size 256 --epochs 1 \
        --amp "$amp" --out "$out/runs/59-gap-$amp" --json > "$out/qonstraint-5.9-gap-1-epoch-$amp.json"
done

# Accuracy of the reported model with the controller on Fashion-MNIST.
$run train fashion-mnist --model qonstraint-5.9-gap --recipe confidence --lr 5e-4 --batch-size 256 --epochs 20 \
    --out "$out/runs/59-gap" --json > "$out/qonstraint-5.9-gap.json"
cp "$out/runs/59-gap/log.csv" "$out/qonstraint-5.9-gap.csv"

# The shipped presets, longer than a CPU allows.
for model in nano nano-a micro; do
    $run train fashion-mnist --model "$model" --epochs 40 --batch-size 128 --out "$out/runs/$model" \
        --json > "$out/$model.json"
done
rm -rf "$out/runs"
