#!/usr/bin/env bash
# A whole chain on Slurm, as a job a stage, each after those that it needs. Run it on a login node, in the repository's
# root; it is no batch script.
#
#   slurm/pipeline.sh CHAIN --cluster C [--run-dir D] [--set ...] [--sbatch --time=24:00:00 ...] [--dry-run]
#
# All arguments are those of `r1mega launch`. A job whose stage fails leaves those that need it cancelled; run again, it
# goes on from there. `r1mega jobs RUN_DIR` shows what has become of them.
set -euo pipefail
refuse() {
  echo "pipeline: $*" >&2
  exit 2
}
[[ -z ${SLURM_JOB_ID-} ]] || refuse "this is a job of Slurm: run slurm/pipeline.sh on a login node, without sbatch"
[[ -f slurm/chain_stage.sh ]] || refuse "$PWD is no checkout of r1mega: run it in the repository's root"
# shellcheck source-path=SCRIPTDIR/..
source slurm/environment.sh
find_python || refuse "$PWD has no .venv: run \`make env\` first"
exec "$PYTHON" -m r1mega.cli launch "$@" --launcher slurm
