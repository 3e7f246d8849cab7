#!/usr/bin/env bash
# What one GPU can tell in 13 minutes: the tests that need CUDA, throughput beside TorchCFM's script, and
# CIFAR-10 for the time that is left. docs/gpu.md explains it.
#
#   [GPU_MINUTES=13] [WHEELS=DIR] [FMDIFF_DATA=DIR] bash scripts/gpu.sh OUT [tests] [throughput] [training]
#
# The same command again goes on where it was stopped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GPU_BEGAN=$(date +%s)
export GPU_BEGAN

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# the Python of the repository's environment, or that of the machine
choose_python() {
  local own="$root/.venv/bin/python"
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
  elif [ -x "$own" ]; then
    echo "$own"
  else
    echo python3
  fi
}

# packages that the machine lacks, from wheels, into a folder of their own
install_wheels() {
  local site="$1/site"
  [ -n "${WHEELS:-}" ] || return 0
  if [ ! -e "$site/.ready" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$site" "$WHEELS"/*.whl
    touch "$site/.ready"
  fi
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
}

# a data folder may hold CIFAR-10 packed, beside the script that unpacks it
unpack_data() {
  local folder=${FMDIFF_DATA:-}
  [ -n "$folder" ] && [ -e "$folder/unpack.py" ] && [ ! -d "$folder/cifar-10-batches-py" ] || return 0
  "$python" "$folder/unpack.py" "$1/data" cifar10
  export FMDIFF_DATA="$1/data"
}

[ $# -gt 0 ] || usage
case $1 in -*) usage ;; esac
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
python=$(choose_python)
mkdir -p "$out/work"
install_wheels "$out/work"
unpack_data "$out/work"
export PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
if [ "${GPU_DEVICE:-cuda}" = cpu ]; then export CUDA_VISIBLE_DEVICES=; fi
exec "$python" "$root/scripts/gpu.py" "$out" "$@"
