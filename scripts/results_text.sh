#!/usr/bin/env bash
# The language tables of docs/results.md: a small GPT-2, trained on a part of the IMDb reviews, then learning IMDb and Yelp.
#   scripts/results_text.sh REVIEWS TOKENIZER [OUTPUT]
# REVIEWS holds {imdb,yelp_polarity}_{train,test}.jsonl.gz; TOKENIZER is a folder with GPT-2's tokenizer. About an hour and
# a half on two cores; a second call runs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
reviews=$1 tokenizer=$2 output=${3:-outputs/text}
weights="$output/small_gpt2.safetensors"
texts="$output/texts"
mkdir -p "$texts"

# The first 2,400 reviews of IMDb are what the network knows beforehand; the study learns from the others.
if [ ! -f "$texts/imdb_train.jsonl" ]; then
  gzip -dc "$reviews/imdb_train.jsonl.gz" | sed -n '1,2400p' >"$output/known.jsonl"
  gzip -dc "$reviews/imdb_train.jsonl.gz" | sed -n '2401,$p' >"$texts/imdb_train.jsonl"
  cp "$reviews/imdb_test.jsonl.gz" "$reviews"/yelp_polarity_{train,test}.jsonl.gz "$texts"
fi
common=("backbone.tokenizer=$tokenizer" benchmark.length=64 trainer.threads=1 trainer.batch_size=8 "output_root=$output"
        "benchmark.cache=$output/cache")
if [ ! -f "$weights" ]; then
  cl-run benchmark=text_domains "${common[@]}" benchmark.long_texts=pack benchmark.n_test=100 \
    "benchmark.domains=[{name: imdb, train: $output/known.jsonl, test: $texts/imdb_test.jsonl.gz}]" \
    backbone=gpt2 backbone.layers=2 backbone.width=256 adapter=none optimizer=adamw scheduler=cosine \
    trainer.iterations=1500 evaluate=last "export=$weights"
fi

study=(-m +experiment=hybrid_imdb_yelp_study "${common[@]}" "benchmark.root=$texts" "backbone.pretrained=$weights"
       benchmark.n_train=360 benchmark.n_test=120 optimizer.lr=5e-3 launcher=joblib hydra.launcher.n_jobs=2)
cl-run "${study[@]}"
# Without the schedule, and with an ordering penalty that counts in so short a training.
cl-run "${study[@]}" adapter=dylora,hybrid "adapter.rank_schedule=[]" adapter.lambda_order=0.03 adapter.eval_ranks_at=last
columns=delta_loss,retention,last_task_loss,adapter_parameters
cl-report "$output/sweeps" --columns "$columns"
cl-report "$output/sweeps" --plot rank_loss --out "$output/rank_loss.png"
