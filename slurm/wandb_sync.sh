#!/usr/bin/env bash
# Send to W&B what runs on compute nodes without a network leave in their run directory: beside them, until they are
# done.
#
#   slurm/wandb_sync.sh RUN_DIR [--every S] [--patience S] [--once]
#   sbatch [--partition=one with a network] [sbatch options] slurm/wandb_sync.sh RUN_DIR [...]
#
# On a login node as it is (under nohup, where the terminal will go away), or as a job where a node reaches W&B.
# RUN_DIR is a run's, or a chain's for all of its stages. WANDB_API_KEY or `wandb login` gives the key, WANDB_BASE_URL
# another server, HTTPS_PROXY a proxy. Every part of a run is sent once, in order, and the one that is being written is
# followed. Started again it goes on; a second one beside it leaves. As a job it is requeued at its time limit.
#
# It ends with 0 when the runs are done and sent, and with 1 when nothing has changed for --patience seconds (a day)
# and something is left: runs that go on later want this started again. 2: it cannot begin.
#
#SBATCH --job-name=r1mega-wandb
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

# Slurm runs a copy of this file that lies elsewhere.
folder=$(pwd)
if [[ -n ${SLURM_JOB_ID-} ]]; then
  cd "${SLURM_SUBMIT_DIR:-.}"
else
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
fi
if [[ ! -f r1mega/runtime/wandb_sync.py ]]; then
  echo "wandb_sync: $PWD is no checkout of r1mega: submit from the repository's root" >&2
  exit 2
fi
if [[ -z ${1-} || ${1-} == -* ]]; then
  echo "wandb_sync: which run? slurm/wandb_sync.sh RUN_DIR [--every S] [--patience S] [--once]" >&2
  exit 2
fi
run_dir=$1
shift
[[ $run_dir == /* || -n ${SLURM_JOB_ID-} ]] || run_dir=$folder/$run_dir

sender=
at_notice() { # the time limit is near
  echo "wandb_sync: $(date +%FT%T) the time limit is near; requeued"
  [[ -z $sender ]] || kill "$sender" 2>/dev/null || true
  scontrol requeue "$SLURM_JOB_ID"
}
[[ -z ${SLURM_JOB_ID-} ]] || trap at_notice USR1

"${R1MEGA_PYTHON:-.venv/bin/python}" -m r1mega.runtime.wandb_sync "$run_dir" "$@" &
sender=$!
trap 'kill "$sender" 2>/dev/null || true' TERM INT
code=0
wait "$sender" || code=$?
exit "$code"
