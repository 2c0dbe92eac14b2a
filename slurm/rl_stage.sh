#!/usr/bin/env bash
# Reinforcement learning on Slurm, a stage "grpo". How it comes back and how it ends stands in slurm/stage.sh.
#
#   sbatch [sbatch options] slurm/rl_stage.sh [CONFIG] [--cluster C] [more arguments of `r1mega run`]
#
# Without CONFIG it is the tiny R1-Zero, whose base model is pretrained first where it is not there yet.
#
#SBATCH --job-name=r1mega
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail
SCRIPT=rl_stage
# Slurm runs a copy of this file that lies elsewhere.
if ! cd "${SLURM_SUBMIT_DIR:-.}" || [[ ! -f slurm/stage.sh ]]; then
  echo "$SCRIPT: ${SLURM_SUBMIT_DIR:-$PWD} is no checkout of r1mega: submit from the repository's root" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR/..
source slurm/stage.sh

DEFAULT_CONFIG=configs/tiny/r1_zero/1_rl.toml
make_bases() { # what it starts from
  local name runs=runs/tiny/r1_zero/demo code
  for name in base anneal; do
    [[ -d $runs/$name/hf ]] && continue
    run_stage "configs/tiny/r1_zero/0_$name.toml" "$runs/$name" "${machine[@]}" && code=0 || code=$?
    settle "$code"
  done
}
stage "$@"
