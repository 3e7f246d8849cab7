#!/usr/bin/env bash
# Conditional MNIST: train (or go on), judge 1,000 digits at each guidance scale, draw a grid.
# OUT=FOLDER bash scripts/mnist.sh
set -euo pipefail
out=${OUT:-outputs/mnist_cond}

fmdiff train experiment=mnist_cond out="$out" resume=last
fmdiff evaluate ckpt="$out" guidance=cfg solver=adams grid.w=[1,1.5,2,3,4] n=1000 steps=10 \
  metrics=[fid,kid,agreement,confidence] out="$out/w"

rows=$(printf '%s,' {0..9}{,,,,,,,,,})  # a row per class
fmdiff sample ckpt="$out" classes="[${rows%,}]" n=100 guidance=cfg guidance.w=2 solver=adams steps=10 \
  overwrite=true out="$out/grid"
