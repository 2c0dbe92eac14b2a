#!/usr/bin/env bash
# One stage on Slurm; it comes back by itself after preemption, a time limit or a crash, and goes on where it was.
#
#   sbatch [sbatch options] slurm/rl_stage.sh [CONFIG] [--cluster C] [more arguments of `r1mega run`]
#
# Submit from the repository's root, on a file system that all nodes share. Without CONFIG it is the tiny R1-Zero,
# whose base model is pretrained first where it is not there yet. The run directory is runs/slurm-<job id>. With two
# nodes or more the last one is the rollout server's and the trainer's ranks are on the others; with one they share
# it. No hyper-parameters here: they are in CONFIG, and the number of ranks is in configs/cluster.
#
# How it ends: done: 0. Something given to it was wrong: 2, and it is not requeued. Asked to leave (SIGUSR1 before the
# time limit, SIGTERM at preemption): the trainer saves, the job is requeued. Crashed or killed: requeued, 10 times at
# most. `scancel` ends it for good.
#
#SBATCH --job-name=r1mega-rl
#SBATCH --nodes=1-2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

# --overlap: the server's step, which rank 0 starts from within the trainer's, must not wait for that one's CPUs.
SRUN=(--overlap --mpi=none --export=ALL --cpu-bind=none)
MAX_CRASHES=10
SAVE_S=90 # after SIGUSR1, within the 120 s that --signal leaves: past the limit Slurm would not requeue the job
DEFAULT_CONFIG=configs/tiny/r1_zero/1_rl.toml
# The stages that make what DEFAULT_CONFIG starts from: configs/tiny/r1_zero/0_NAME.toml into DEFAULT_RUNS/NAME.
DEFAULT_BASES=(base anneal)
DEFAULT_RUNS=runs/tiny/r1_zero/demo

say() { echo "rl_stage: $(date +%FT%T) $*"; }

refuse() {
  echo "rl_stage: $*" >&2
  exit 2
}

# ---- what Slurm says of this job ----------------------------------------------------------------------------

job_field() { # NAME: its value in `scontrol show job`
  scontrol show --oneliner job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p"
}

address_of() { # NODE: the address that Slurm itself reaches it at; its name need not resolve
  scontrol show --oneliner node "$1" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p'
}

preempted() {
  local when
  when=$(job_field PreemptTime)
  [[ -n $when && $when != None && $when != N/A ]]
}

was_asked() { # EXIT_CODE: whether a trainer that leaves with it was asked to (SIGINT, SIGUSR1, SIGTERM)
  [[ $1 == 130 || $1 == 138 || $1 == 143 ]]
}

# ---- being asked to leave -----------------------------------------------------------------------------------

step=  # process id of the srun that runs the trainer
timer= # process id of what requeues the job when the trainer takes too long
asked= # why this job has to leave
woken= # a trap ran since this was emptied

# Traps run while `wait` waits. srun hands SIGUSR1 on to the ranks (SIGTERM would make it kill them). They may have
# had a SIGTERM from Slurm itself: to be told twice does no harm (r1mega/runtime/interrupt.py).
ask_to_leave() { # WHY
  woken=yes asked=$1
  say "$asked: the trainer is told to save and leave"
  [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true
}

at_usr1() {
  ask_to_leave "SIGUSR1, the time limit is near"
  (
    sleep "$SAVE_S"
    say "the trainer has not left within $SAVE_S s"
    requeue "the time limit"
  ) &
  timer=$!
}

trap at_usr1 USR1
# It would requeue the job's next start.
trap '[[ -z $timer ]] || kill "$timer" 2>/dev/null || true' EXIT
trap 'ask_to_leave "SIGTERM"' TERM

requeue() { # WHY; returns where that cannot be done
  # A job that is not running any more is Slurm's: it requeues a preempted job itself, and one that its user has
  # cancelled must not come back.
  local state
  state=$(job_field JobState)
  if [[ $state != RUNNING ]]; then
    say "$1: not requeued from here, the job is $state"
    return
  fi
  say "$1: requeued; the run goes on from its last checkpoint"
  trap '' TERM USR1 # Slurm now ends the job
  scontrol requeue "$SLURM_JOB_ID" || say "scontrol requeue failed; submit again with --run-dir $run_dir to go on"
}

# What becomes of the job after a stage; returns only when the stage is done.
settle() { # EXIT_CODE
  local code=$1 num_crashes crashes=$run_dir/logs/crashes.txt
  ((code != 0)) || return 0
  # Before everything else: told to leave halfway, a stage may leave with any exit code.
  if preempted; then
    requeue "preempted (exit code $code)"
  elif [[ -n $asked ]] || was_asked "$code"; then
    requeue "${asked:-the trainer was asked to leave} (exit code $code)"
  elif ((code == 2)); then
    say "exit code 2: something given to the run is wrong, as it says above; mend it and submit again. Not requeued"
  else
    mkdir -p "$run_dir/logs"
    echo "job $SLURM_JOB_ID start ${SLURM_RESTART_COUNT:-0} exit code $code" >>"$crashes"
    num_crashes=$(grep -c "^job $SLURM_JOB_ID " "$crashes")
    if ((num_crashes <= MAX_CRASHES)); then
      requeue "crash $num_crashes of at most $MAX_CRASHES (exit code $code)"
    else
      say "exit code $code, crash $num_crashes of this job: given up. Not requeued"
    fi
  fi
  exit "$code"
}

# ---- running a stage ----------------------------------------------------------------------------------------

run_stage() { # CONFIG RUN_DIR SETTINGS...: the exit code of `r1mega run`
  local config=$1 dir=$2 code=0 num_ranks num_nodes launch nodes=() placement=() server="the same node"
  shift 2
  num_ranks=$("$PYTHON" -m r1mega.cli check "$config" "$@" --print ranks) || return $?
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  num_nodes=$((${#nodes[@]} > 1 ? ${#nodes[@]} - 1 : 1)) # the trainer's
  num_nodes=$((num_nodes < num_ranks ? num_nodes : num_ranks))
  MASTER_ADDR=$(address_of "${nodes[0]}") || return 1
  # This script runs on the first node, where rank 0 will.
  MASTER_PORT=$("$PYTHON" -c 'from r1mega.runtime.process import free_port; print(free_port("0.0.0.0"))') || return 1
  export MASTER_ADDR MASTER_PORT
  if ((${#nodes[@]} > 1)); then
    server=${nodes[-1]}
    printf -v launch '"%s", ' \
      srun "${SRUN[@]}" --job-name=rollout --nodes=1 --ntasks=1 --nodelist="$server" slurm/server.sh
    placement=(
      --set "cluster.address=$MASTER_ADDR"
      --set "cluster.rollout.host=$(address_of "$server")"
      --set "cluster.rollout.launch=[${launch%, }]"
    )
  fi
  say "$config in $dir: $num_ranks trainer rank(s) on ${nodes[*]:0:num_nodes}, rollout server on $server"
  [[ -z $asked ]] || return 143
  rm -f "$dir/logs/first_failure" "$dir/logs/first_loss"
  mkdir -p "$dir/logs" 2>/dev/null || true # where that cannot be, the run itself says so
  srun "${SRUN[@]}" --kill-on-bad-exit=1 --job-name=trainer \
    --nodes="$num_nodes" --ntasks="$num_ranks" --distribution=block \
    --nodelist="$(IFS=, && echo "${nodes[*]:0:num_nodes}")" slurm/rank.sh "$dir/logs" \
    "$PYTHON" -m r1mega.cli run "$config" "$@" "${placement[@]}" --run-dir "$dir" --resume &
  step=$!
  [[ -z $asked ]] || kill -USR1 "$step" # asked while srun was being started
  while true; do
    woken='' code=0
    wait "$step" || code=$?
    [[ -n $woken ]] || break # a trap ends `wait` early
  done
  step=
  first_failure "$dir/logs" "$code"
}

first_failure() { # LOG_DIR SRUN_CODE: returns the exit code of the rank that failed first; see slurm/rank.sh
  local rank code=$2 record=$1/first_failure
  [[ -f $record ]] || record=$1/first_loss
  if [[ -f $record ]]; then
    read -r rank code <"$record"
    if ((rank > 0)) && ! was_asked "$code"; then
      say "rank $rank failed first, with exit code $code. The end of its log $1/rank_$rank.log:"
      tail -n 20 "$1/rank_$rank.log" | sed 's/^/  /'
    fi
  elif was_asked "$code"; then
    code=137 # no rank came to say so: they were killed
  fi
  return "$code"
}

# ---- the job ------------------------------------------------------------------------------------------------

[[ -n ${SLURM_JOB_ID-} ]] || refuse "not a Slurm job. Submit it with sbatch; without Slurm run launchers/local.py"
cd "$SLURM_SUBMIT_DIR"
if [[ ! -x slurm/rank.sh ]] || ! grep -qs '^name = "r1mega"' pyproject.toml; then
  refuse "$SLURM_SUBMIT_DIR is no checkout of r1mega: submit from the repository's root"
fi
PYTHON=.venv/bin/python
[[ -x $PYTHON ]] || refuse "$SLURM_SUBMIT_DIR has no .venv: run \`make env\` first"

config=$DEFAULT_CONFIG
if (($#)) && [[ $1 != -* ]]; then
  config=$1
  shift
fi
run_dir=runs/slurm-$SLURM_JOB_ID
settings=() # what check and run both understand
machine=()  # the part of it that also holds for the default base
while (($#)); do
  case $1 in
    --run-dir) run_dir=${2:?--run-dir needs a folder} && shift ;;
    --run-dir=*) run_dir=${1#*=} ;;
    --resume) ;;
    --cluster | --set)
      settings+=("$1" "${2:?$1 needs a value}")
      [[ $1 == --set && $2 != cluster.* ]] || machine+=("$1" "$2")
      shift
      ;;
    *) settings+=("$1") ;;
  esac
  shift
done

say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start ${SLURM_RESTART_COUNT:-0}"
if [[ $config == "$DEFAULT_CONFIG" ]]; then
  for name in "${DEFAULT_BASES[@]}"; do
    [[ -d $DEFAULT_RUNS/$name/hf ]] && continue
    run_stage "configs/tiny/r1_zero/0_$name.toml" "$DEFAULT_RUNS/$name" "${machine[@]}" && code=0 || code=$?
    settle "$code"
  done
fi
run_stage "$config" "$run_dir" "${settings[@]}" && code=0 || code=$?
settle "$code"
say "done: $run_dir"
