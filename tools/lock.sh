#!/usr/bin/env bash
# Resolves pyproject.toml's extras into requirements/NAME.lock: versions and hashes, no index address.
# tools/lock.sh [cpu] [gpu-trainer] [gpu-engine] [launch]: all when none is named. Versions stay as they are locked where
# that is possible; UPGRADE=1 takes the newest ones. PYTHON: one that has packaging. For the GPU's locks it then asks which files
# their wheels own (tools/wheel_files.py), to requirements/NAME.files.json; a path in two of them is a fault.
#
# cpu: vLLM asks for torchvision, torchaudio and torchcodec (on CPU for triton too), which exist on the registry as CUDA
# builds alone and break `import transformers` next to a CPU torch; nothing of r1mega uses them, so they are left out.
# gpu-trainer: what cpu.lock has too has its version, so that the tests on CPUs run what the trainer runs, but for torch
# and what torch pins. Its NCCL is not the one that torch 2.11 pins but that of the engine's torch: trainer and engine
# share communicators, and NCCL refuses two versions in one.
# gpu-engine: vLLM's own pins. cuda-python 12 would be a second owner of cuda-bindings' files, so it is kept to 13.
# launch: NeMo-Run imports leptonai, which asks for Ray without importing it. Ray and what it asks for would be more than
# half of the environment, so it is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
declare -A extras=([cpu]="cpu dev" [gpu-trainer]="gpu-trainer test" [gpu-engine]="gpu-engine" [launch]="launch")
declare -A pythons=([cpu]=3.11 [gpu-trainer]=3.12 [gpu-engine]=3.12 [launch]=3.11)
# The oldest C library that each has to run on: Ubuntu 24.04's on GPUs.
declare -A glibc=([cpu]=2_28 [gpu-trainer]=2_39 [gpu-engine]=2_39 [launch]=2_28)

(($#)) || set -- cpu gpu-trainer gpu-engine launch
for name; do
  [[ -v extras[$name] ]] || { echo "lock: no $name; there are ${!extras[*]}" >&2; exit 2; }
  constraints=$(mktemp)
  if [[ $name == gpu-trainer ]]; then
    grep -oE '^[a-z0-9._-]+==[^ ]+' requirements/cpu.lock | grep -v '^torch==' >"$constraints"
  fi
  # shellcheck disable=SC2046,SC2086
  uv pip compile pyproject.toml $(printf -- '--extra %s ' ${extras[$name]}) --override "requirements/$name.overrides" \
    --constraint "$constraints" --generate-hashes --python-version "${pythons[$name]}" \
    --python-platform "x86_64-manylinux_${glibc[$name]}" --no-emit-index-url --no-annotate --no-header \
    ${UPGRADE:+--upgrade} -q -o "requirements/$name.lock"
  rm -f "$constraints"
  [[ $name != gpu-* ]] || "$PYTHON" tools/wheel_files.py "requirements/$name.lock" --python "${pythons[$name]}" \
    --glibc "${glibc[$name]/_/.}"
done

# For the CPU, torch by its public version with the hashes of every build a user may point pip at: CPU and CUDA, x86-64
# and Arm.
"$PYTHON" - <<'PY'
import pathlib, re
lock = pathlib.Path("requirements/cpu.lock")
hashes = pathlib.Path("requirements/torch.hashes").read_text().split()
lines = " \\\n".join(f"    --hash=sha256:{h}" for h in hashes)
text = re.sub(r"^torch==[^\n]*\n(    --hash[^\n]*\n)+", f"torch==2.13.0 \\\n{lines}\n", lock.read_text(), flags=re.M)
lock.write_text(text)
PY
