#!/usr/bin/env bash
# Small networks on CPUs, equal time each: MNIST by U-Net, DiT and JiT (12 core minutes), CIFAR-10
# by U-Net and DiT (an hour), judged at thirds and against real images and noise. Reached: see
# EXPERIMENTS.md. OUT=FOLDER bash scripts/images_cpu.sh [NAME...]; goes on where it was stopped.
set -euo pipefail
out=${OUT:-outputs/images_cpu}
names=("$@")
[ $# -gt 0 ] || names=(mnist_unet mnist_dit mnist_jit cifar10_cpu cifar10_dit_cpu)

for name in "${names[@]}"; do
  run="$out/$name"
  fmdiff train experiment="$name" trainer.keep=null threads=1 out="$run" resume=last
  case $name in
  cifar10_cpu) steps=(1300 2600 3900) ;;
  cifar10_dit_cpu) steps=(1100 2200 3300) ;;
  *) steps=(last) ;;
  esac
  for step in "${steps[@]}"; do
    ckpt=$run
    [ "$step" = last ] || ckpt=$run/$(printf '%07d' "$step").ckpt
    fmdiff evaluate ckpt="$ckpt" metrics=[fid] solver=adams steps=10 n=2000 precision=bf16 \
      overwrite=true out="$run/fd_$step"
  done
  rows=$(printf '%s,' {0..9}{,,,,,,,,,})  # a row per class
  fmdiff sample ckpt="$run" classes="[${rows%,}]" n=100 guidance=cfg guidance.w=2 solver=adams \
    steps=10 overwrite=true out="$run/grid"
done

# the ends of the scale: as many real test images, and noise
fmdiff evaluate model=data data=cifar10 metrics=[fid] n=2000 overwrite=true out="$out/real"
python - "$out/noise.npz" <<'END'
import sys
import numpy as np
np.savez(sys.argv[1], arr_0=np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), np.uint8))
END
fmdiff evaluate samples="$out/noise.npz" against=cifar10 metrics=[fid] overwrite=true out="$out/noise"
