#!/usr/bin/env bash
# The adapter tables of docs/results.md: CIFAR-10 as class folders, ResNet-20, 5 tasks of 2 classes, 3 epochs, 1,000
# images a class; with task labels, and without them under each way of telling tasks apart.
#   scripts/results_adapters.sh ROOT [OUTPUT]
# ROOT holds train/CLASS/* and test/CLASS/*. Takes about an hour on 2 cores. Ends with cl-report's tables and the
# Pareto plots OUTPUT/labels.png and OUTPUT/no_labels.png.
set -euo pipefail
root=${1:?usage: results_adapters.sh ROOT [OUTPUT]}
output=${2:-outputs/results_adapters}
common=(+experiment=convlora_folder "benchmark.root=$root" benchmark.per_class=1000 trainer.epochs=3
  trainer.channels_last=true evaluate=seen quiet=true)
run() {
  local place=$1; shift
  echo "cl-run $*"
  cl-run "${common[@]}" "output_root=$output/$place" "$@" ${EXTRA:-}
}

run labels adapter=none
for rank in 1 3 9; do run labels adapter=convlora adapter.rank=$rank; done
run labels adapter=senacnn
run labels adapter=convlora_cp adapter.rank=1
run labels adapter=lora adapter.rank=9
run labels adapter=lora adapter.rank=9 adapter.sharing=per_task
run labels adapter=dylora adapter.rank=9
run labels adapter=codyra adapter.rank=9
for rule in oracle max_output entropy prototype; do
  run no_labels adapter=convlora adapter.rank=9 benchmark.task_labels=false adapter.task_inference=$rule
  run no_labels adapter=senacnn benchmark.task_labels=false adapter.task_inference=$rule
done
run no_labels adapter=none benchmark.task_labels=false
for place in labels no_labels; do
  cl-report "$output/$place"
  cl-report "$output/$place" --plot pareto --out "$output/$place.png"
done
