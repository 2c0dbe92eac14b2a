#!/usr/bin/env bash
# Makes the folder that tools/gpu/check.sh takes to a GPU machine without a network: tools/gpu/carry.sh [OUT] [--prebuild]
# OUT is build/gpu-carry, which git ignores. PYTHON chooses the interpreter that downloads and packs (any from 3.11).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
exec "$PYTHON" tools/gpu/carry.py "$@"
