#!/usr/bin/env bash
# Resolves pyproject.toml's extras into requirements/cpu.lock and gpu.lock: versions and hashes, no index address.
# tools/lock.sh [cpu] [gpu]: both when none is named. Each has the dev extra too. Versions stay as they are locked where
# that is possible; UPGRADE=1 takes the newest ones.
#
# vLLM asks for torchvision, torchaudio and torchcodec (on CPU for triton too), which exist on the registry as CUDA
# builds alone and break `import transformers` next to a CPU torch; nothing of r1mega uses them, so they are left out.
# Transformer Engine's source package asks for the CUDA that it finds where it is resolved; torch's here is 13.
set -euo pipefail
cd "$(dirname "$0")/.."
for machine in "${@:-cpu gpu}"; do for name in $machine; do
  uv pip compile pyproject.toml --extra "$name" --extra dev --override "requirements/$name.overrides" \
    --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-emit-index-url --no-annotate --no-header ${UPGRADE:+--upgrade} -o "requirements/$name.lock"
done; done
# For the CPU, torch by its public version with the hashes of every build a user may point pip at: CPU and CUDA, x86-64
# and Arm.
python3 - <<'PY'
import pathlib, re
lock = pathlib.Path("requirements/cpu.lock")
hashes = pathlib.Path("requirements/torch.hashes").read_text().split()
lines = " \\\n".join(f"    --hash=sha256:{h}" for h in hashes)
text = re.sub(r"^torch==[^\n]*\n(    --hash[^\n]*\n)+", f"torch==2.13.0 \\\n{lines}\n", lock.read_text(), flags=re.M)
lock.write_text(text)
PY
