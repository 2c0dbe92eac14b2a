#!/usr/bin/env bash
# One stage of a chain on Slurm, whatever its kind: what `r1mega pipeline` would run for it, on the nodes of this job.
#
#   sbatch [sbatch options] slurm/chain_stage.sh CHAIN STAGE --run-dir CHAIN_DIR [--cluster C] [--set ...]
#
# Submitted by slurm/pipeline.sh, which makes each job wait for those that it needs. A stage that is done is passed over,
# one whose settings or inputs are others now begins anew. How it comes back and how it ends stands in slurm/stage.sh.
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
SCRIPT=chain_stage
# Slurm runs a copy of this file that lies elsewhere.
if ! cd "${SLURM_SUBMIT_DIR:-.}" || [[ ! -f slurm/stage.sh ]]; then
  echo "$SCRIPT: ${SLURM_SUBMIT_DIR:-$PWD} is no checkout of r1mega: submit from the repository's root" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR/..
source slurm/stage.sh
enter
chain_dir='' words=("$@")
while (($#)); do
  [[ $1 != --run-dir ]] || chain_dir=${2-}
  shift
done
[[ -n $chain_dir && ${words[0]} != -* && ${words[1]--} != -* ]] ||
  refuse "slurm/chain_stage.sh CHAIN STAGE --run-dir CHAIN_DIR: slurm/pipeline.sh CHAIN submits a job a stage"
run_dir=$chain_dir/${words[1]}
job_logs=$chain_dir/.jobs # the run directory may be moved aside
again="slurm/pipeline.sh ${words[0]} goes on from here"
mkdir -p "$job_logs"
begin

in_environment() { # ARGUMENTS...: `r1mega` as the trainer has it, on this node
  local alone=()
  if ((${#environment_srun[@]})); then
    alone=(srun "${SRUN[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --job-name=chain-stage)
  fi
  "${alone[@]}" "${WITHIN[@]}" "${TRAINER[@]}" -m r1mega.cli "$@" </dev/null
}

# Of its config and cluster file alone: more may not be known of the stage in the environment that the job came in.
place=$("$PYTHON" -m r1mega.cli chain-stage place "${words[@]}") && code=0 || code=$?
settle "$code"
mapfile -t own <<<"$place"
enter_environment "${own[@]}" && code=0 || code=$?
((code != 2)) || stop
settle "$code"

arguments=$job_logs/${words[1]}-$JOB.arguments
in_environment chain-stage begin "${words[@]}" >"$arguments" && code=0 || code=$?
settle "$code"
mapfile -d '' -t stage_arguments <"$arguments"
rm -f "$arguments"
if ((${#stage_arguments[@]})); then
  run_dir=${stage_arguments[1]} # in the words in which the library compares it
  run_stage "${stage_arguments[@]}" && code=0 || code=$?
  settle "$code"
fi
chain=$(in_environment chain-stage end "${words[@]}" --seconds "$SECONDS") && code=0 || code=$?
settle "$code"
say "done: $run_dir"
if [[ -n $chain ]]; then
  in_environment report "$chain_dir" || say "the chain is done; its report cannot be made"
  say "the chain is done: $chain_dir"
fi
