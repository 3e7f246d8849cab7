#!/usr/bin/env bash
# Flow maps of images on CPUs: trains a velocity network, makes it a map, and judges the map at 1, 2,
# 4 and 8 evaluations beside its parent's solvers. Reached: see EXPERIMENTS.md.
# OUT=FOLDER bash scripts/flow_maps_images.sh [mnist] [cifar10]; goes on where it was stopped.
set -euo pipefail
out=${OUT:-outputs/flow_maps_images}
names=("$@")
[ $# -gt 0 ] || names=(mnist cifar10)

for name in "${names[@]}"; do
  case $name in
  mnist) parent=mnist_cond metrics=[fid,agreement] ;;
  cifar10) parent=cifar10_cpu metrics=[fid] ;;
  esac
  velocity="$out/$name" map="$out/${name}_map"
  fmdiff train experiment="$parent" trainer.precision=bf16 threads=1 out="$velocity" resume=last
  fmdiff train experiment="${name}_map" init="$velocity" objective.teacher="$velocity" threads=1 \
    out="$map" resume=last
  fmdiff evaluate ckpt="$map" grid.steps=[1,2,4,8] metrics="$metrics" n=1000 overwrite=true \
    out="$map/steps"
  for solver in euler heun adams; do
    counts=[1,2,4,8]
    [ "$solver" != heun ] || counts=[2,4,8]
    fmdiff evaluate ckpt="$velocity" solver="$solver" grid.nfe="$counts" metrics="$metrics" n=1000 \
      overwrite=true out="$velocity/$solver"
  done
  rows=$(printf '%s,' {0..9}{,,,,,,,,,})  # a row per class
  for steps in 1 2 4; do
    fmdiff sample ckpt="$map" steps="$steps" classes="[${rows%,}]" n=100 overwrite=true \
      out="$map/grid_$steps"
  done
done
