#!/usr/bin/env bash
# What needs a CUDA device, in one command: correctness first, then speed. Has not been run on one yet.
#   scripts/bench_gpu.sh [all | classes | clip | text | resume] [OUTPUT]
# classes: the tests that are skipped without CUDA; the quickstart, whose forgetting must be 0 there too; ResNet-20 with
#          images on the device and on the host, in float32 and in bfloat16 with channels-last; throughput is in each
#          summary.json.
# clip:    CLIP's tests on the device; a stream of small domains; LoRA on ViT-B/16 (bfloat16, batch 64, frozen text) in
#          images/s against a plain loop and the computation alone, with the share of the device's peak. The goal is
#          5,000 images/s.
# text:    the tests of language models on the device; LoRA of rank 64 on GPT-2 small (8 x 128 tokens, as published, and
#          32 x 128 in bfloat16) against transformers with PEFT and against the computation alone. With IMDb and Yelp in
#          $CL_DATA_ROOT/text and GPT-2 in $GPT2 (a folder with weights and tokenizer), the published study at full size.
# resume:  runs that are killed and resumed in deterministic mode, which must be identical to those that were not.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
output=${2:-outputs/bench_gpu}
case $what in all | classes | clip | text | resume) ;; *) echo "bench_gpu.sh: all, classes, clip, text or resume, not '$what'" >&2; exit 2 ;; esac
python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "bench_gpu.sh: torch sees no CUDA device")'
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
mkdir -p "$output"

classes() {
  python -m pytest tests/test_lane.py tests/test_no_forgetting.py
  cl-run trainer.device=cuda "output_root=$output"
  for data_placement in device host; do
    cl-run adapter=convlora backbone=resnet20 trainer.device=cuda trainer.batch_size=512 "trainer.data_placement=$data_placement" "output_root=$output/$data_placement"
    cl-run adapter=convlora backbone=resnet20 trainer.device=cuda trainer.batch_size=512 "trainer.data_placement=$data_placement" \
      trainer.precision=bfloat16 trainer.channels_last=true "output_root=$output/${data_placement}_bfloat16"
  done
  cl-report "$output"
}

clip() {
  python -m pytest tests/test_clip_device.py
  python scripts/bench_clip.py --device cuda --json "$output/clip.json"
  python scripts/bench_clip.py --device cuda --batch 256 --json "$output/clip_batch256.json"
}

text() {
  python -m pytest tests/test_language.py tests/test_transformers.py
  python scripts/bench_text.py --device cuda --json "$output/text.json"
  python scripts/bench_text.py --device cuda --batch 32 --precision bfloat16 --json "$output/text_batch32.json"
  if [ -n "${GPT2:-}" ]; then
    cl-run -m +experiment=hybrid_imdb_yelp_study "backbone.pretrained=$GPT2" "backbone.tokenizer=$GPT2" "output_root=$output"
  fi
}

resume() {
  python scripts/chaos.py --device cuda --kills 3 --json "$output/chaos.json"
}

for part in classes clip text resume; do
  if [ "$what" = all ] || [ "$what" = "$part" ]; then "$part"; fi
done
