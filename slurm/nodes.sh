# shellcheck shell=bash
# Which nodes of the job are fit to start on, and what is done about the others. Sourced by slurm/stage.sh.

left_out='' # nodes of this job on which nothing is started, as a list with commas
nodes_seen='' # whether they have been looked at in this start of the job

check_nodes() { # RUN_DIR CONFIG SETTINGS...: returns 0 where the stage can start, on `place` as it is then
  local dir=$1 config=$2 code=0 bad words=()
  shift 2
  [[ -z $nodes_seen ]] || return 0
  nodes_seen=yes
  # shellcheck disable=SC2154 # of slurm/environment.sh
  if [[ $environment_checks != on ]]; then
    say "nodes are not checked (environment.checks.enabled = false)"
    return 0
  fi
  mkdir -p "$dir/logs" 2>/dev/null || return 0 # where that cannot be, the run itself says so
  words=(srun "${SRUN[@]}" --nodes=1 --ntasks=1 "--nodelist={node}" --job-name=nodes)
  [[ -z ${place[node_options]-} ]] || words+=("${place[node_options]}")
  ask_nodes "$dir" "$@" -- "${words[@]}" "${WITHIN[@]}" "${TRAINER[@]}" || code=$?
  [[ -z $asked ]] || return 143
  bad=$(sed -n 's/^bad=//p' "$dir/logs/nodes.txt" | tail -n 1)
  while read -r line; do [[ $line == bad=* ]] || say "$line"; done <"$dir/logs/nodes.txt"
  case $code in
    0) ;;
    1)
      say "the nodes could not be checked; starting on them all the same"
      return 0
      ;;
    *) return "$code" ;;
  esac
  [[ -n $bad ]] || return 0
  # This script is on the first node: it cannot go on without it.
  if [[ ,$bad, != *,"$(first_node)",* ]]; then
    # shellcheck disable=SC2034 # for read_placement
    left_out=$bad
    if read_placement "$config" "$@"; then
      say "$bad: left out; the stage runs on the other nodes"
      return 0
    fi
    # shellcheck disable=SC2034
    left_out=''
  fi
  requeue_without "$bad"
}

first_node() {
  scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
}

ask_nodes() { # RUN_DIR SETTINGS... -- COMMAND...: the exit code of the check, whose output is RUN_DIR/logs/nodes.txt
  local dir=$1 code check settings=()
  shift
  while [[ $1 != -- ]]; do
    case $1 in
      --cluster | --set)
        settings+=("$1" "$2")
        shift
        ;;
    esac
    shift
  done
  "$PYTHON" -m r1mega.runtime.node_check --run-dir "$dir" "${settings[@]}" --gpus "${place[gpus]-0}" \
    --address "$(address_of "$(first_node)")" \
    --nodes "$(nodes_of_job)" "$@" \
    >"$dir/logs/nodes.txt" 2>&1 </dev/null &
  check=$!
  while true; do
    woken='' code=0
    wait "$check" || code=$?
    [[ -n $woken ]] || break # a trap ends `wait` early
    kill "$check" 2>/dev/null || true
  done
  return "$code"
}

requeue_without() { # NODES: the job comes back on others, where the partition has so many
  local excluded needed total
  excluded=$(job_field ExcNodeList)
  [[ $excluded != *null* ]] || excluded=
  mapfile -t excluded < <(scontrol show hostnames "${excluded:+$excluded,}$1" | sort -u)
  needed=$(job_field NumNodes)
  total=$(scontrol show --oneliner partition "$SLURM_JOB_PARTITION" | field TotalNodes)
  if ((total - ${#excluded[@]} < ${needed%%-*})); then
    say "$1: unfit, and partition $SLURM_JOB_PARTITION has $total node(s), of which ${#excluded[@]} are left out and" \
      "${needed%%-*} needed: have them mended, or set [environment.checks] of the cluster file to what they have"
    stop
  fi
  requeue "unfit nodes ($1)"
  # Before it is put on nodes again, which Slurm does once the job's old credential has run out.
  if scontrol update JobId="$JOB" ExcNodeList="$(
    IFS=,
    echo "${excluded[*]}"
  )"; then
    say "$1: the job will start on others (ExcNodeList)"
  fi
  exit 75
}
