#!/usr/bin/env bash
# All that is to be measured on one GPU, some 15 minutes on a fast one, into results/gpu: bash benchmarks/gpu.sh [folder with MNIST]
#
# WRN-28-10 as the DiscrimLoss authors have it, bf16 against the usual loop in fp32; what each method costs over Plain; LeNet; ResNet-18;
# each loss alone, with up to 1e8 samples; what an epoch costs beside its steps; bf16 and compile against fp32 in accuracy (where
# there is MNIST).
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi
fast="device=cuda precision=bf16 compile=true"
out=results/gpu
mkdir -p "$out"

for method in plain discrimloss superloss data_parameters; do
  ways="bare ours"
  if [[ $method == discrimloss ]]; then ways="bare ours usual workers plain"; fi
  "$PYTHON" -m benchmarks.throughput "params/cifar10/$method.yaml" --synthetic 50000 --steps 100 --usual-precision fp32 \
    --only $ways --out "$out/wrn28_10.csv" noise.fraction=0.4 $fast
done
"$PYTHON" -m benchmarks.throughput params/cifar10/plain.yaml --synthetic 50000 --only bare ours --out "$out/resnet18.csv" \
  model=resnet18 $fast
for method in plain discrimloss; do
  "$PYTHON" -m benchmarks.throughput "params/mnist/$method.yaml" --synthetic 60000 --only bare ours --out "$out/lenet.csv" $fast
done
"$PYTHON" -m benchmarks.losses device=cuda --out "$out/losses.csv"
"$PYTHON" -m benchmarks.epoch params/cifar10/discrimloss.yaml --out "$out/epoch.csv" noise.fraction=0.4 $fast
"$PYTHON" -m benchmarks.files device=cuda --out "$out/files.csv"
if [[ $# == 1 ]]; then
  for options in "precision=fp32" "precision=bf16 compile=true"; do
    for seed in 1 2 3 4 5; do
      "$PYTHON" main.py params/mnist/discrimloss.yaml noise.fraction=0.4 epochs=5 "data_root=$1" device=cuda "seed=$seed" $options \
        "run_dir=runs/precision/${options// /,}/seed$seed"
    done
  done
  "$PYTHON" -m utils.report runs/precision --log "$out/precision"
fi
