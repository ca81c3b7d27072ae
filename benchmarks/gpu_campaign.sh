#!/usr/bin/env bash
# Everything that needs a GPU, in pieces that can be run one by one and taken up again.
#
#   benchmarks/gpu_campaign.sh [--dry-run] [OUT] [PIECE ...]
#
#   speed             memory and epoch time of every named configuration, with real steps of the paper's recipe
#   data              how much of a step waits for images, over whole epochs of 80,000
#   accuracy          5.9 with the full recipe on Fashion-MNIST
#   precision         5.9 with amp auto, bf16, fp16, off; channels-last and torch.compile on and off
#   presets           nano, nano-a and micro on Fashion-MNIST, longer than a CPU allows
#   tiny-imagenet     the paper's reported run: 5.9 GAP, 70 epochs, three seeds, against 54.7 +- 0.2 %,
#                     9.2 GB and 333 s an epoch
#   cifar-10          the thesis' recipe, three seeds
#   engines           nano as TensorRT and TensorRT-RTX engines, and with ONNX Runtime's CUDA and TensorRT providers,
#                     where such is installed
#   ablation-recipes  benchmarks/ablation.py recipes
#   ablation-without  benchmarks/ablation.py without
#
# Each piece keeps its numbers in OUT/PIECE.json (default benchmarks/results/gpu). A piece that is complete there is
# not repeated; one that failed, was interrupted or reached its time limit goes on where it stopped when the script is
# run again. Runs in training, with their checkpoints (2 to 5 GB for 5.9), are kept outside OUT, in CAMPAIGN_WORK: keep
# that folder between calls. Data sets are looked for in ./data of the repository; the pieces tiny-imagenet and cifar-10
# are skipped, and say so, where theirs is not there.
#
# --dry-run does the same on the CPU at a tiny size on the embedded images, in about a minute.
#
#   CAMPAIGN_LIMIT_S  time limit of each piece (420); a piece ends within a minute or so after it
#   CAMPAIGN_EPOCHS   epochs of the accuracy run (40; 1 in a dry run)
#   CAMPAIGN_WORK     where training runs are kept (runs/gpu_campaign; OUT/runs in a dry run)
#   PYTHON            the interpreter (python3)
#
# Exit code: 0 every piece asked for is complete, 1 one is not, 2 wrong usage, 130 interrupted.
set -euo pipefail

all=(speed data accuracy precision presets tiny-imagenet cifar-10 engines ablation-recipes ablation-without)
python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

options=(--limit-s "${CAMPAIGN_LIMIT_S:-420}")
[[ -z ${CAMPAIGN_EPOCHS:-} ]] || options+=(--epochs "$CAMPAIGN_EPOCHS")
complete=complete default_out=$root/benchmarks/results/gpu dry_run=
if [[ ${1:-} == --dry-run ]]; then
    shift
    dry_run=yes complete="complete, dry run" default_out=$root/runs/gpu_dry_run
    options+=(--dry-run)
fi

is_piece() { [[ " ${all[*]} " == *" $1 "* ]]; }

if is_piece "${1:-none}" || [[ ${1:-} == -* ]]; then
    echo "usage: $0 [--dry-run] [OUT] [PIECE ...]; the folder comes first, found '$1'" >&2
    exit 2
fi
out=${1:-$default_out}
pieces=("${@:2}")
((${#pieces[@]})) || pieces=("${all[@]}")
for piece in "${pieces[@]}"; do
    is_piece "$piece" || { echo "there is no piece '$piece'; known: ${all[*]}" >&2; exit 2; }
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=${CAMPAIGN_WORK:-${dry_run:+$out/runs}}
work=${work:-$root/runs/gpu_campaign}
mkdir -p "$work"
work=$(cd "$work" && pwd)

cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[[ -z $dry_run ]] || export CUDA_VISIBLE_DEVICES=
stopped=
trap 'stopped=yes' INT TERM # Ctrl-C reaches the piece as well; wait until it has left its work usable
status=0
for piece in "${pieces[@]}"; do
    if grep -qsF "\"state\": \"$complete\"" "$out/$piece.json"; then
        echo "$piece: done before"
        continue
    fi
    begin=$SECONDS code=0
    "$python" benchmarks/gpu_campaign.py "$piece" "$out" "$work" "${options[@]}" || code=$?
    took="after $((SECONDS - begin)) s"
    case $code in
        0) echo "$piece: complete $took" ;;
        3) echo "$piece: not complete $took; run this again to go on" && status=1 ;;
        4) echo "$piece: skipped $took" ;;
        130) echo "$piece: interrupted $took; run this again to go on" && stopped=yes ;;
        *) echo "$piece: failed $took" && status=1 ;;
    esac
    [[ -z $stopped ]] || exit 130
done
exit "$status"
