#!/usr/bin/env bash
# What is known of the trainer on a GPU, in nine minutes of one Hopper GPU, on a machine without a network:
#   tools/gpu/check.sh [--out DIR] [--carry DIR] [--device cuda|cpu] [--only STEP]...
# The carry is what tools/gpu/carry.sh makes. Results: DIR/results.jsonl, a line a step, and a log a step beside it. The
# exit status is 0 where every step passed. --device cpu rehearses all of it on small sizes and measures nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export GLOO_SOCKET_IFNAME=lo # the host's own name may not resolve
export PYTHONUNBUFFERED=1    # what a step said before it was ended is in its log
export PYTHONDONTWRITEBYTECODE=
PYTHON=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
exec "$PYTHON" tools/gpu/check.py "$@"
