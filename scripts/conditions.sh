#!/usr/bin/env bash
# Super-resolution and inpainting of MNIST: train (or go on), judge samples against the images
# behind their conditions, and draw them beside these. Replacement in an unconditional model is
# judged on the same images.
# OUT=FOLDER N=500 STEPS=800 bash scripts/conditions.sh
set -euo pipefail
out=${OUT:-outputs/conditions} n=${N:-500} steps=${STEPS:-800}
adams="solver=adams steps=8"

for task in super_resolution:low inpaint:known; do
  run=$out/${task%:*} name=${task#*:}
  fmdiff train experiment="mnist_${task%:*}" trainer.max_steps="$steps" out="$run" resume=last
  fmdiff sample ckpt="$run" "cond.$name=data:test" n="$n" $adams \
    metrics=[fid,psnr,agreement] overwrite=true out="$run/judged"
  fmdiff sample ckpt="$run" "cond.$name=data:test" n=36 $adams overwrite=true out="$run/grid"
done

fmdiff invert ckpt=zoo:mnist label=none inpaint=[7,7,21,21] n="$n" steps=[16] solvers=[euler] \
  overwrite=true out="$out/replacement"
python - "$out/replacement" <<'PYTHON'
import sys

import numpy as np

folder = sys.argv[1]
arrays = np.load(f"{folder}/invert.npz")


def pixels(x):
    return np.rint(127.5 * (x.clip(-1, 1) + 1)).astype(np.uint8).transpose(0, 2, 3, 1)


known = arrays["x"].copy()
known[:, :, 7:21, 7:21] = np.nan
np.savez(
    f"{folder}/samples.npz",
    arr_0=pixels(arrays["inpainted"]),
    real=pixels(arrays["x"]),
    cond_known=known,
)
PYTHON
fmdiff evaluate samples="$out/replacement/samples.npz" against=mnist \
  metrics=[fid,psnr,psnr_known,agreement] overwrite=true out="$out/replacement/judged"
