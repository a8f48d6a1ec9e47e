#!/usr/bin/env bash
# The table of docs/results.md: strategies on CIFAR-10 as class folders, ResNet-20, 5 tasks of 2 classes, 3 epochs.
#   scripts/results_folder.sh ROOT [OUTPUT]
# ROOT holds train/CLASS/* and test/CLASS/*. Takes about 40 minutes on 2 cores. Ends with cl-report's table.
set -euo pipefail
root=${1:?usage: results_folder.sh ROOT [OUTPUT]}
output=${2:-outputs/results_folder}
common=(+experiment=convlora_folder "benchmark.root=$root" "output_root=$output" trainer.epochs=3 trainer.channels_last=true quiet=true)
run() { echo "cl-run $*"; cl-run "${common[@]}" "$@"; }

for labels in true false; do
  for strategy in naive replay lwf joint; do
    run adapter=none "strategy=$strategy" "benchmark.task_labels=$labels" benchmark.per_class=1000
  done
done
run adapter=none strategy=ewc strategy.ewc_lambda=10 benchmark.task_labels=true benchmark.per_class=1000  # 100 diverges
run adapter=none strategy=ewc strategy.ewc_lambda=100 benchmark.task_labels=false benchmark.per_class=1000
run strategy=naive benchmark.per_class=1000
run adapter=none strategy=naive benchmark.task_labels=true
run strategy=naive
cl-report "$output"
