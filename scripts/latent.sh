#!/usr/bin/env bash
# Digits in a latent space: an autoencoder (5 minutes of one core), a model of its latents (10), and a
# model of the pixels that takes as long (15). Judges the reconstructions and 1,000 samples of each.
# OUT=FOLDER bash scripts/latent.sh
set -euo pipefail
out=${OUT:-outputs/latent}

fmdiff train experiment=mnist_autoencoder out="$out/autoencoder" resume=last
fmdiff train experiment=mnist_latent data.autoencoder="$out/autoencoder" out="$out/latent" resume=last
fmdiff train experiment=mnist_cond trainer.max_steps=640 out="$out/pixels" resume=last

fmdiff evaluate ckpt="$out/autoencoder" n=1000 overwrite=true out="$out/reconstructions"
for model in latent pixels; do
  fmdiff evaluate ckpt="$out/$model" solver=adams steps=8 n=1000 metrics=[fid,agreement] overwrite=true out="$out/judged_$model"
  fmdiff sample ckpt="$out/$model" solver=adams steps=8 n=100 overwrite=true out="$out/samples_$model"
done
