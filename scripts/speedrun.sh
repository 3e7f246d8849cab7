#!/usr/bin/env bash
# The tables of docs/speedrun.md, seeds 0 to 2: MNIST after 10 minutes and by fmdiff's recipe, CIFAR-10
# after 35. PEERS is a checkout of flow_matching; THREADS=1 where others use the cores.
# PEERS=FOLDER OUT=FOLDER bash scripts/speedrun.sh; goes on where it was stopped.
set -euo pipefail
out=${OUT:-outputs/speedrun}
words=(--threads "${THREADS:-2}" --out "$out")

python scripts/speedrun.py mnist "${words[@]}"
python scripts/speedrun.py mnist "${words[@]}" --minutes 10 --who fmdiff,torchcfm --solver adams
python scripts/speedrun.py cifar10 "${words[@]}" --minutes 35
# no more than a step or two of the peers: what they cost
python scripts/speedrun.py cifar10 "${words[@]}" --minutes 2 --seeds 0 --n 0 --peers "$PEERS" \
  --who torchcfm,flow_matching
