#!/usr/bin/env bash
# What is to be measured on one GPU, as far as the minutes reach; the queue is gpu.py's:
#   bash benchmarks/gpu.sh --minutes 11 --data DIR --out DIR
#   bash benchmarks/gpu.sh --dry-cpu --out DIR
#   bash benchmarks/gpu.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=$(command -v python || echo python3)
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
