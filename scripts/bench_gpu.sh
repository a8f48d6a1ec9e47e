#!/usr/bin/env bash
# What needs a CUDA device, in one command: correctness first, then speed. Has not been run on one yet; meant for 9 minutes.
#   scripts/bench_gpu.sh [all | classes | speed | many | clip | text | resume] [OUTPUT]
# classes: the tests that are skipped without CUDA, recorded steps among them; the quickstart, whose forgetting must be 0.
# speed:   the loop against stock Avalanche, a plain loop and compute only; the published ConvLoRA schedule on VGG-19 at
#          batch 64 and 512 (goals: under 3 minutes, 20,000 training images/s) beside the limit by arithmetic; the frozen
#          prefix; evaluation; recorded steps off and on.
# many:    8 seeds over a frozen base: one alone, one after another, in turn, stacked (goal: under 3 times the time of one).
# clip:    LoRA on ViT-B/16 (bfloat16, batch 64 and 256, frozen text) against a plain loop and the computation alone.
#          The goal is 5,000 images/s.
# text:    LoRA of rank 64 on GPT-2 small (8 x 128 tokens, as published, and 32 x 128 in bfloat16) against transformers
#          with PEFT and against the computation alone. With IMDb and Yelp in $CL_DATA_ROOT/text and GPT-2 in $GPT2 (a
#          folder with weights and tokenizer), the published study at full size.
# resume:  runs that are killed and resumed in deterministic mode, which must be identical to those that were not.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
output=${2:-outputs/bench_gpu}
case $what in
  all | classes | speed | many | clip | text | resume) ;;
  *) echo "bench_gpu.sh: all, classes, speed, many, clip, text or resume, not '$what'" >&2; exit 2 ;;
esac
python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "bench_gpu.sh: torch sees no CUDA device")'
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
mkdir -p "$output"

classes() {
  python -m pytest tests/test_lane.py tests/test_no_forgetting.py tests/test_capture.py tests/test_clip_device.py
  cl-run trainer.device=cuda "output_root=$output"
}

speed() {
  python scripts/bench_stream.py --fastest --json "$output/stream.json"
  python scripts/bench_stream.py --fastest --batch 512 --json "$output/stream_batch512.json"
  python scripts/bench_stream.py --fastest --epochs 10 --json "$output/stream_not_recorded.json" trainer.compile=false
  python scripts/bench_loop.py --device cuda --repeats 3 --json "$output/loop.json"
  python scripts/bench_prefix.py --device cuda --json "$output/prefix.json"
}

many() {
  python scripts/bench_sweep.py --cells 0 --processes 0 --seeds 8 --frozen --case resnet20 --device cuda --repeats 1 --json "$output/many.json"
}

clip() {
  python scripts/bench_clip.py --device cuda --repeats 3 --json "$output/clip.json"
  python scripts/bench_clip.py --device cuda --repeats 3 --batch 256 --json "$output/clip_batch256.json"
}

text() {
  python scripts/bench_text.py --device cuda --json "$output/text.json"
  python scripts/bench_text.py --device cuda --batch 32 --precision bfloat16 --json "$output/text_batch32.json"
  if [ -n "${GPT2:-}" ]; then
    cl-run -m +experiment=hybrid_imdb_yelp_study "backbone.pretrained=$GPT2" "backbone.tokenizer=$GPT2" "output_root=$output"
  fi
}

resume() {
  python scripts/chaos.py --device cuda --kills 1 --json "$output/chaos.json"
}

for part in classes speed many clip text resume; do
  if [ "$what" = all ] || [ "$what" = "$part" ]; then "$part"; fi
done
