#!/usr/bin/env bash
# A network of 256 units predicts x, eps or v of a plane in D dimensions: at D = 512 only x works
# (figures in EXPERIMENTS.md). 36 trainings, about 25 minutes on two cores; goes on where it
# stopped. scripts/jit_toy.sh [FOLDER] [PROCESSES]
set -euo pipefail
out=${1:-outputs/jit_toy}
processes=${2:-2}
here=$(dirname "$0")
mkdir -p "$out"

sweep() {
  local seed=$1 dim=$2 runs=$3/$1-$2
  [[ -f $runs/done ]] && return
  rm -rf "$runs"
  fmdiff train -m experiment=jit_toy data.ambient_dim="$dim" objective.prediction=x,eps,v \
    seed="$seed" trainer.logger=csv trainer.progress=false trainer.picture_every=3000 \
    trainer.validate_every=3000 trainer.checkpoint_every=3000 device=cpu threads=1 out="$runs"
  for run in "$runs"/[0-9]; do
    fmdiff sample ckpt="$run" n=10000 steps=28 device=cpu threads=1 out="$run/points"
  done
  touch "$runs/done"
}
export -f sweep
for dim in 512 16 8 2; do
  for seed in 0 1 2; do
    echo "$seed $dim $out"
  done
done | xargs -P "$processes" -L 1 bash -c 'sweep "$@"' sweep
python "$here/jit_toy.py" "$out"
