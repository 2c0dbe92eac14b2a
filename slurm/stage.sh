# shellcheck shell=bash
# One stage, or one conversion, on Slurm: what the scripts that a user submits share. Sourced by them, each of which
# names itself in SCRIPT. The job comes back by itself after preemption, a time limit or a crash, and goes on where it
# was.
#
# What to ask sbatch for is printed by `r1mega check CONFIG --cluster C --print slurm`; on CPUs more nodes may be given.
# Supervised stages use them all. A stage that samples keeps the last one for its rollout server, or on GPUs as many as
# its servers fill; on one node of CPUs both take turns. The run directory is runs/slurm-<job id>. No hyper-parameters
# here: they are in CONFIG, and ranks and GPUs are in configs/cluster, as is in which container or environment trainer
# and servers run ([environment]; slurm/environment.sh).
#
# A node that is lost: Slurm itself puts the job back into the queue, and the next start has the nodes that there are.
# With --nodes=MIN-MAX it goes on with the data-parallel ranks that fit on them, where cluster.trainer.least_dp allows
# that; without, it waits for its nodes. Not with --no-kill: what that keeps has no node in the place of the lost one,
# and nothing at all where the lost one is the first, on which this runs. So a requeue has to work in any case, and as
# the ranks that remain must meet anew in any case, the wait in the queue is all that --no-kill could save.
#
# How it ends: done: 0. Something given to it was wrong, such as nodes that do not fit, or a config of a stage that
# another script runs: 2, and it is not requeued. Asked to leave (SIGUSR1 before the time limit, as early as --signal
# says; SIGTERM or SIGUSR1 at preemption): the trainer saves, the job is requeued. Crashed or killed: requeued, 10 times
# at most. When more than 10 starts in a row leave nothing behind to go on from: 2. `scancel` ends it for good.

# --overlap: an evaluation's first rank is on a node of its servers, whose step has all of that one's CPUs.
SRUN=(--overlap --mpi=none --export=ALL --cpu-bind=none)
MAX_CRASHES=10
LAST_S=15 # before the job's end it is requeued, with or without a save: past it Slurm would not do that

say() { echo "$SCRIPT: $(date +%FT%T) $*"; }

refuse() {
  echo "$SCRIPT: $*" >&2
  exit 2
}

was_asked() { # EXIT_CODE: whether a trainer that leaves with it was asked to (SIGINT, SIGUSR1, SIGTERM)
  [[ $1 == 130 || $1 == 138 || $1 == 143 ]]
}

# ---- being asked to leave -----------------------------------------------------------------------------------

step=  # process id of the srun that runs the trainer
nodes= # of the one that runs what starts servers on their nodes
timer= # process id of watch_end
asked= # why this job has to leave
woken= # a trap ran since this was emptied

stop_timer() {
  [[ -z $timer ]] || kill "$timer" 2>/dev/null || true
  timer=
}

start_timer() { # LAST_S
  stop_timer
  watch_end "$1" &
  timer=$!
}

# Traps run while `wait` waits. srun hands SIGUSR1 on to the ranks (SIGTERM would make it kill them). They may have
# had a SIGTERM from Slurm itself: to be told twice does no harm (r1mega/runtime/interrupt.py).
at_notice() { # SIGNAL: the one of --signal before the time limit, or what Slurm sends when it takes the job away
  local left state
  woken=yes asked=$1
  [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true # before Slurm is asked, which may be slow to answer
  # A trap that fails would end the script, and the job with it.
  left=$(seconds_left) || left=$NO_LIMIT_S
  state=$(job_field JobState) || state=
  if [[ -n $state && $state != RUNNING ]]; then
    asked+=", the job is $state"
  elif preempted; then
    asked+=", preempted, $left s before the end of the grace time"
  elif ((left < NO_LIMIT_S)); then
    asked+=", $left s before the time limit"
    start_timer "$((left / 4 < 30 ? left / 4 : 30))" # Slurm looks at its jobs' ends twice a minute
  fi
  say "$asked: the trainer is told to save and leave"
}

for signal in USR1 USR2 HUP INT TERM; do
  # shellcheck disable=SC2064 # the signal as it is now
  trap "at_notice SIG$signal" "$signal"
done
trap 'leave $?' EXIT

leave() { # EXIT_CODE
  stop_timer # it would requeue the job's next start
  stop_servers
  # For `r1mega jobs`, where Slurm has forgotten the job: see r1mega/launchers/job.py.
  [[ -z ${run_dir-} ]] || echo "job $JOB start ${SLURM_RESTART_COUNT:-0} exit code $1" 2>/dev/null \
    >>"${job_logs:-$run_dir/logs}/exits.txt" || true
}

requeue() { # WHY; returns where that cannot be done
  # A job that is not running any more is Slurm's: it requeues a preempted job itself, and one that its user has
  # cancelled must not come back.
  local state
  state=$(patiently job_field JobState) || state=
  if [[ -z $state ]]; then
    say "$1: not requeued, as Slurm does not answer; $again"
    return
  fi
  if [[ $state != RUNNING ]]; then
    say "$1: not requeued from here, the job is $state; Slurm requeues it where it was preempted"
    return
  fi
  if [[ $(job_field Requeue) == 0 ]]; then
    say "$1: not requeued, as --no-requeue asks; $again"
    return
  fi
  say "$1: requeued; the run goes on from its last checkpoint"
  event "$run_dir" requeued "$1"
  echo "$JOB ${SLURM_RESTART_COUNT:-0}" 2>/dev/null >"$run_dir/logs/requeued" || true
  trap '' TERM USR1 # Slurm now ends the job
  patiently scontrol requeue "$JOB" || say "scontrol requeue failed; $again"
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
    stop
  else
    mkdir -p "$run_dir/logs"
    echo "job $JOB start ${SLURM_RESTART_COUNT:-0} exit code $code" >>"$crashes"
    num_crashes=$(grep -c "^job $JOB " "$crashes")
    if ((num_crashes <= MAX_CRASHES)); then
      requeue "crash $num_crashes of at most $MAX_CRASHES (exit code $code)"
    else
      say "exit code $code, crash $num_crashes of this job: given up. Not requeued"
      event "$run_dir" crashed "exit code $code, crash $num_crashes of this job: given up, not requeued"
    fi
  fi
  exit "$code"
}

stop() { # what does not get better by starting again, whatever the job was asked meanwhile
  say "exit code 2: something given to the run is wrong, as it says above; mend it and submit again. Not requeued"
  exit 2
}

# ---- running a stage ----------------------------------------------------------------------------------------

declare -A place # of a stage: see `lines` in r1mega/config/slurm.py; and the script that runs such a stage

read_placement() { # CONFIG SETTINGS...; what is known is read even where the stage does not fit
  local lines name value code=0
  lines=$("$PYTHON" -m r1mega.cli check "$@" --print placement --leave-out "$left_out") || code=$?
  place=()
  while IFS='=' read -r name value; do [[ -z $name ]] || place[$name]=$value; done <<<"$lines"
  return "$code"
}

start_servers() { # FOLDER: on each of their nodes a process that starts what rank 0 orders there
  local node addresses=() options=() servers=()
  IFS=, read -ra servers <<<"${place[server]}"
  for node in "${servers[@]}"; do addresses+=("$(address_of "$node")") || return 1; done
  read -ra options <<<"${place[server_options]}"
  orders=$1
  rm -rf "$orders" && mkdir -p "$orders" || return 1
  # Not on standard input: the script's own. A signal for the job is for the trainer's step alone.
  srun "${SRUN[@]}" "${options[@]}" --job-name=rollout "${WITHIN[@]}" slurm/server.sh "$orders" "$(
    IFS=,
    echo "${addresses[*]}"
  )" "${SERVER[@]}" </dev/null &
  nodes=$!
}

stop_servers() { # what of them is left ends with their nodes' processes
  local seconds=0
  [[ -n $nodes ]] || return 0
  touch "$orders/over" 2>/dev/null || true
  while kill -0 "$nodes" 2>/dev/null && ((seconds++ < 60)); do sleep 1; done
  kill -KILL "$nodes" 2>/dev/null || true
  wait "$nodes" 2>/dev/null || true
  nodes=
}

run_step() { # SRUN_ARGUMENTS...: the exit code of srun; what the job is told meanwhile it tells the step
  local code
  srun "${SRUN[@]}" "$@" &
  step=$!
  [[ -z $asked ]] || kill -USR1 "$step" # asked while srun was being started
  while true; do
    woken='' code=0
    wait "$step" || code=$?
    [[ -n $woken ]] || break # a trap ends `wait` early
  done
  step=
  return "$code"
}

run_stage() { # CONFIG RUN_DIR SETTINGS...: the exit code of `r1mega run`
  local config=$1 dir=$2 code=0 idle options=() apart=() where="no rollout server of its own"
  shift 2
  read_placement "$config" "$@" || code=$?
  if [[ $dir == "$run_dir" && $SCRIPT != chain_stage && ${place[script]:-$SCRIPT} != "$SCRIPT" ]]; then
    refuse "$config is a stage for slurm/${place[script]}.sh: submit that one, with the same arguments"
  fi
  if ((code != 0)); then
    ((code != 2)) || stop
    return "$code"
  fi
  # A base made on the way takes what there is, and so does a layout that lacks a node.
  if [[ -n ${place[unused]} && $dir == "$run_dir" && -z ${place[dp]-} ]]; then
    say "${place[unused]}: granted, and of no use to ${place[ranks]} trainer rank(s): ask for fewer nodes, or have more" \
      "ranks in the cluster file; \`r1mega check CONFIG --cluster CLUSTER --print slurm\` prints what to ask for"
    stop
  fi
  idle=$(idle_starts "$dir")
  if ((idle > MAX_IDLE_STARTS)); then
    say "the last $idle starts of this job came to nothing: each was asked to leave, or killed, before there was a" \
      "checkpoint or an answer to go on from. Ask for more time (--time, --signal), or set a smaller" \
      "save.every_steps; --run-dir $dir goes on with this run"
    event "$dir" crashed "the last $idle starts of job $JOB left nothing to go on from: given up, not requeued"
    stop
  fi
  requeued_by_others "$dir"
  lost_nodes "$dir"
  say_grace "$dir"
  check_nodes "$dir" "$config" "$@" || return $?
  [[ -z ${place[loss]-} ]] || say "${place[loss]}"
  if [[ -n ${place[dp]-} ]]; then
    say "fewer nodes than the layout fills: ${place[dp]} data-parallel rank(s), until a start is granted more"
    apart+=(--set "cluster.trainer.dp=${place[dp]}")
  fi
  MASTER_ADDR=$(address_of "${place[trainer]%%,*}") || return 1
  # This script runs on the first node, where rank 0 will.
  MASTER_PORT=$("$PYTHON" -c 'from r1mega.runtime.process import free_port; print(free_port("0.0.0.0"))') || return 1
  export MASTER_ADDR MASTER_PORT
  if [[ -n ${place[server]} ]]; then
    where="rollout servers on ${place[server]}"
    apart+=(--set "cluster.address=$MASTER_ADDR" --set "cluster.rollout.attendants=$(realpath -m "$dir/servers")")
  fi
  read -ra options <<<"${place[trainer_options]}"
  say "$config in $dir: ${place[ranks]} trainer rank(s) on ${place[trainer]}, $where"
  [[ -z $asked ]] || return 143
  if [[ -n ${place[server]} ]]; then start_servers "$(realpath -m "$dir/servers")" || return 1; fi
  rm -f "$dir/logs/"{first_failure,first_loss,begun}
  mkdir -p "$dir/logs" 2>/dev/null || true # where that cannot be, the run itself says so
  run_step "${options[@]}" --kill-on-bad-exit=1 --job-name=trainer "${WITHIN[@]}" slurm/rank.sh "$dir/logs" \
    "${TRAINER[@]}" -m r1mega.cli run "$config" "$@" "${apart[@]}" --run-dir "$dir" --resume || code=$?
  stop_servers
  if ((code != 0)) && [[ -z $asked && ! -e $dir/logs/begun ]] && step_is_refused "${options[@]}"; then stop; fi
  first_failure "$dir/logs" "$code"
}

step_is_refused() { # OPTIONS: whether Slurm creates no such step in this job, however often it is asked
  local said
  if said=$(srun "${SRUN[@]}" --immediate=60 "$@" true 2>&1); then return 1; fi
  grep -qE 'Unable to create step|Only allocated' <<<"$said" || return 1
  if grep -qE 'timed out|transmitted|contact|ompleting' <<<"$said"; then return 1; fi
  say "Slurm does not create the trainer's step within what it granted the job (srun $*): $said"
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
    if ((code > 128)) && ! was_asked "$code"; then
      event "${1%/logs}" rank-lost "rank $rank was ended by signal $((code - 128))"
    elif ((rank > 0 && code != 75)) && ! was_asked "$code"; then
      event "${1%/logs}" crashed "rank $rank failed first, with exit code $code; its log is logs/rank_$rank.log"
    fi
  elif was_asked "$code"; then
    code=137 # no rank came to say so: they were killed
  fi
  return "$code"
}

# ---- the job ------------------------------------------------------------------------------------------------

enter() { # looks at where the job is, and reads what is asked of Slurm
  [[ -n ${SLURM_JOB_ID-} ]] || refuse "not a Slurm job. Submit it with sbatch; without Slurm run launchers/local.py"
  [[ -z ${SLURM_HET_SIZE-} ]] || refuse "a heterogeneous job, of which one part alone would be used: submit it as one part"
  if [[ ! -x slurm/rank.sh ]] || ! grep -qs '^name = "r1mega"' pyproject.toml; then
    refuse "$SLURM_SUBMIT_DIR is no checkout of r1mega: submit from the repository's root"
  fi
  # The number of the last task of an array is the whole array's.
  JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  JOB=${JOB:-$SLURM_JOB_ID}
  run_dir=runs/slurm-$JOB
  # shellcheck source-path=SCRIPTDIR/..
  source slurm/job.sh
  # shellcheck source-path=SCRIPTDIR/..
  source slurm/environment.sh
  # shellcheck source-path=SCRIPTDIR/..
  source slurm/nodes.sh
  find_python || refuse "$SLURM_SUBMIT_DIR has no .venv: run \`make env\` first"
  # What sbatch was told of tasks would be each srun's wish as well, beside the placement's own.
  unset "${!SLURM_NTASKS@}" "${!SLURM_GPUS_PER_@}" "${!SLURM_TRES_PER_@}" SLURM_GPUS SLURM_GPU_BIND SLURM_DISTRIBUTION \
    SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_HINT SLURM_THREADS_PER_CORE
  # What changes how scontrol writes a time, and which cluster it asks.
  unset SLURM_TIME_FORMAT SLURM_CLUSTERS
}

begin() { # once it is known where the run is: what watches the job's end requeues it with these words
  say "job $JOB on $SLURM_JOB_NODELIST, start ${SLURM_RESTART_COUNT:-0}"
  start_timer "$LAST_S"
}

stage() { # CONFIG ARGUMENTS...: the whole job of a script that runs a stage; without CONFIG that of DEFAULT_CONFIG
  local config='' code settings=()
  machine=() # what `settings` has that also holds for what is run before DEFAULT_CONFIG
  if (($#)) && [[ $1 != -* ]]; then
    config=$1
    shift
  fi
  enter
  config=${config:-${DEFAULT_CONFIG-}}
  [[ -n $config ]] || refuse "which stage? sbatch slurm/$SCRIPT.sh CONFIG [--cluster C] [more arguments of \`r1mega run\`]"
  while (($#)); do
    case $1 in
      --run-dir) run_dir=${2:?--run-dir needs a folder} && shift ;;
      --run-dir=*) run_dir=${1#*=} ;;
      --resume) ;;
      --cluster=* | --set=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
      --cluster | --set)
        settings+=("$1" "${2:?$1 needs a value}")
        [[ $1 == --set && $2 != cluster.* ]] || machine+=("$1" "$2")
        shift
        ;;
      *) settings+=("$1") ;;
    esac
    shift
  done
  again="submit again with --run-dir $run_dir to go on"
  begin
  enter_environment "$config" "${machine[@]}" && code=0 || code=$?
  ((code != 2)) || stop
  settle "$code"
  [[ $config != "${DEFAULT_CONFIG-}" ]] || make_bases
  run_stage "$config" "$run_dir" "${settings[@]}" && code=0 || code=$?
  settle "$code"
  say "done: $run_dir"
}
