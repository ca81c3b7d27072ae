#!/usr/bin/env bash
# Make the model that ships in the package (qdeploy/shipped): nano on the full Fashion-MNIST, then INT8.
# The files in the package were made again from their own fp32 file, without training, by
#   qdeploy quantize qdeploy/shipped/model.fp32.onnx --data fashion-mnist --out NEW_FOLDER
# and have got their confidence, each from its own logits, by
#   qdeploy calibrate qdeploy/shipped/model.int8.onnx --data fashion-mnist --coverage 0.95
# About 50 minutes on one core with AMX. Needs the four published files or the network.
set -euo pipefail
cd "$(dirname "$0")/.."
qdeploy train fashion-mnist --model nano --epochs 16 --batch-size 128 --out runs/shipped
qdeploy export runs/shipped --int8 --coverage 0.95 --out qdeploy/shipped
