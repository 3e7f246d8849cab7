#!/usr/bin/env bash
# Moons with an MLP and 8x8 handwritten digits with a U-Net: train, sample, look. About 3 minutes
# on 2 CPU cores. STEPS=40 makes it a smoke test, OUT=DIR puts the results elsewhere. Results that are
# there already stay: the next ones go to outputs/demo-2, outputs/demo-3, ...
set -euo pipefail
base=${OUT:-outputs/demo} out=${OUT:-outputs/demo} number=1
while [ -e "$out/moons" ] || [ -e "$out/digits" ]; do
    number=$((number + 1))
    out=$base-$number
done
[ "$out" = "$base" ] || echo "$base has results already, which stay; these go to $out"

echo "== 1/2 moons: points, flow matching along the straight path, an MLP"
fmdiff train data=moons model=mlp trainer.max_steps="${STEPS:-4000}" out="$out/moons"
fmdiff sample ckpt="$out/moons" trajectory=true steps=20 n=4000 out="$out/moons/samples/demo"

echo
echo "== 2/2 digits: 8x8 images, ten classes, a U-Net, classifier-free guidance"
fmdiff train data=digits model=unet trainer.max_steps="${STEPS:-1400}" optim.lr=2e-3 out="$out/digits"
fmdiff sample ckpt="$out/digits" guidance=cfg guidance.w=2 steps=20 n=100 out="$out/digits/samples/demo"

cat <<TXT

Look at
  $out/moons/samples/demo/scatter.png       samples beside the data
  $out/moons/samples/demo/trajectory.gif    from noise to data
  $out/digits/samples/demo/grid.png         a column per digit

Try next
  fmdiff sample ckpt=$out/digits classes=[3,7] solver=adams steps=12
  fmdiff train -m data=moons path=condot,vp optim.lr=1e-3,3e-4
  fmdiff info ckpt=$out/digits
  fmdiff train --help
TXT
