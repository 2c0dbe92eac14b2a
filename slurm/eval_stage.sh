#!/usr/bin/env bash
# An evaluation on Slurm, a stage "evaluate". How it comes back and how it ends stands in slurm/stage.sh.
#
#   sbatch [sbatch options] slurm/eval_stage.sh CONFIG [--cluster C] [more arguments of `r1mega run`]
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
SCRIPT=eval_stage
# Slurm runs a copy of this file that lies elsewhere.
if ! cd "${SLURM_SUBMIT_DIR:-.}" || [[ ! -f slurm/stage.sh ]]; then
  echo "$SCRIPT: ${SLURM_SUBMIT_DIR:-$PWD} is no checkout of r1mega: submit from the repository's root" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR/..
source slurm/stage.sh
stage "$@"
