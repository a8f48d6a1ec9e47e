#!/usr/bin/env bash
# What needs a CUDA device, in one command: correctness first, then speed. Has not been run on one yet.
#   scripts/bench_gpu.sh [OUTPUT]
# The tests that are skipped without CUDA; the quickstart, whose forgetting must be 0 there too; ResNet-20 with images on
# the device and on the host, in float32 and in bfloat16 with channels-last; throughput is in each summary.json.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-outputs/bench_gpu}
python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "bench_gpu.sh: torch sees no CUDA device")'
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python -m pytest tests/test_lane.py tests/test_no_forgetting.py
cl-run trainer.device=cuda "output_root=$output"
for data_placement in device host; do
  cl-run adapter=convlora backbone=resnet20 trainer.device=cuda trainer.batch_size=512 "trainer.data_placement=$data_placement" "output_root=$output/$data_placement"
  cl-run adapter=convlora backbone=resnet20 trainer.device=cuda trainer.batch_size=512 "trainer.data_placement=$data_placement" \
    trainer.precision=bfloat16 trainer.channels_last=true "output_root=$output/${data_placement}_bfloat16"
done
cl-report "$output"
