#!/usr/bin/env bash
# A model folder into another form on Slurm, with all cores of a node: Hugging Face's or Megatron's. No ranks, no GPU.
#
#   sbatch [sbatch options] slurm/convert.sh to-hf|to-megatron FROM OUT [--cluster C] [more arguments of `r1mega convert`]
#
# Of the cluster file it takes the [environment], in which the conversion then runs.
# Killed, preempted or out of time, it is requeued and writes only the parts that are not there yet. How it ends stands
# in slurm/stage.sh; its records are in runs/slurm-<job id>.
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
SCRIPT=convert
# Slurm runs a copy of this file that lies elsewhere.
if ! cd "${SLURM_SUBMIT_DIR:-.}" || [[ ! -f slurm/stage.sh ]]; then
  echo "$SCRIPT: ${SLURM_SUBMIT_DIR:-$PWD} is no checkout of r1mega: submit from the repository's root" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR/..
source slurm/stage.sh
enter
[[ ${1-} == to-* && ${2:--} != -* && ${3:--} != -* ]] ||
  refuse "slurm/convert.sh to-hf|to-megatron FROM OUT: FROM and OUT come before any option, as \`r1mega convert\` has them"
out=$(realpath -m "$3")
work=${out%/*}/.${out##*/}.converting # see r1mega/conversion/convert.py
kept_of() { # in place of a run's: the records of parts that are written
  find "$work/parts" -name '*.json' 2>/dev/null | sort | cksum | tr ' ' :
}
again="submit the same again to go on"
begin
arguments=() machine=()
while (($#)); do
  if [[ $1 == --cluster ]]; then
    machine=(--cluster "${2:?--cluster needs a name}") && shift
  else
    arguments+=("$1")
  fi
  shift
done
enter_environment "$SCRIPT" "${machine[@]}" && code=0 || code=$?
((code != 2)) || stop
settle "$code"
idle=$(idle_starts "$run_dir")
if ((idle > MAX_IDLE_STARTS)); then
  say "the last $idle starts of this job came to nothing: each ended before a part was written. Ask for more time (--time)"
  event "$run_dir" crashed "the last $idle starts of job $JOB left nothing to go on from: given up, not requeued"
  stop
fi
# OUT appears at the end of a start, which may be ended before it can say so.
if [[ ! -e $out ]]; then
  touch "$run_dir/logs/out_was_absent"
elif [[ -e $run_dir/logs/out_was_absent && ! -e $work/out ]]; then
  rm -rf "$work"
  say "done: $out"
  exit 0
fi
rm -f "$run_dir/logs/"{first_failure,first_loss}
code=0
run_step --nodes=1 --ntasks=1 --nodelist="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" \
  --job-name=convert "${WITHIN[@]}" slurm/rank.sh "$run_dir/logs" "${TRAINER[@]}" -m r1mega.cli convert \
  "${arguments[@]}" || code=$?
first_failure "$run_dir/logs" "$code" && code=0 || code=$?
settle "$code"
say "done: $out"
