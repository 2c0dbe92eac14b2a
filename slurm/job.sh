# shellcheck shell=bash
# What slurm/rl_stage.sh asks Slurm and a run directory about its job. Sourced; JOB is the job as Slurm's commands take it.
# shellcheck disable=SC2034 # names that the other one reads

MAX_IDLE_STARTS=10 # in a row, that left nothing for the next one to go on from
NO_LIMIT_S=999999999

field() { # NAME: its value on standard input, of NAME=VALUE words
  tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

job_field() { # NAME: its value in `scontrol show job`
  scontrol show --oneliner job "$JOB" | field "$1"
}

patiently() { # COMMAND...: for five minutes, where it fails: Slurm's controller may be busy, or being started anew
  local pause
  for pause in 2 4 8 16 30 60 60 60 60; do
    "$@" && return 0
    sleep "$pause"
  done
  "$@"
}

address_of() { # NODE: the address that Slurm itself reaches it at; its name need not resolve
  scontrol show --oneliner node "$1" | field NodeAddr
}

preempted() {
  local when
  when=$(job_field PreemptTime)
  [[ -n $when && $when != None && $when != N/A ]]
}

preempt_mode() { # of the job's partition: REQUEUE, CANCEL, ...; OFF where nothing is preempted
  local config
  config=$(scontrol show config)
  if grep -q '^PreemptType *= preempt/none' <<<"$config"; then
    echo OFF
  else
    scontrol show --oneliner partition "$SLURM_JOB_PARTITION" | field PreemptMode
  fi
}

seconds_left() { # until Slurm ends the job: its time limit, or the grace time once it is preempted; fails without an answer
  local end
  end=$(job_field EndTime) || return 1
  if [[ $end == [0-9]* ]]; then
    echo $(($(date -d "$end" +%s) - $(date +%s)))
  else
    echo "$NO_LIMIT_S"
  fi
}

watch_end() { # LAST_S: requeues the job LAST_S before its end, whatever the trainer does then; to run beside it
  local left end=
  while true; do
    if left=$(seconds_left); then
      end=$(($(date +%s) + left))
    else # Slurm does not answer at the moment: as it said last
      left=$((${end:-$(date +%s) + NO_LIMIT_S} - $(date +%s)))
    fi
    if ((left <= $1)); then
      # Slurm itself requeues a job that it preempts, at the very end of the grace time.
      if preempted && [[ $(preempt_mode) == *REQUEUE* ]]; then return; fi
      say "$left s before the end of the job the trainer has not left"
      requeue "the time limit"
      return
    fi
    sleep $((left - $1 < 30 ? left - $1 : 30)) # both preemption and `scontrol update` move the end
  done
}

say_grace() { # RUN_DIR: what a preemption leaves of this run
  local mode grace took record=$1/logs/leaving_s
  mode=$(preempt_mode)
  [[ $mode == *REQUEUE* || $mode == *CANCEL* ]] || return 0
  if grep -q '^PreemptType *= preempt/qos' <<<"$(scontrol show config)"; then # no pipe, which grep would break
    say "jobs are preempted by QOS here: the GraceTime of \`sacctmgr show qos\` must be enough for a step and a save"
    return
  fi
  grace=$(scontrol show --oneliner partition "$SLURM_JOB_PARTITION" | field GraceTime)
  took=$([[ ! -f $record ]] || cat "$record")
  if ((grace == 0)); then
    say "partition $SLURM_JOB_PARTITION preempts without grace (GraceTime=0), so nothing is saved then: the run goes" \
      "back to its last checkpoint, which save.every_steps places"
    [[ $mode == *REQUEUE* ]] || say "nor does such a job come back (PreemptMode=$mode): submit again with --run-dir $1"
  elif [[ $took == unfinished ]]; then
    say "GraceTime=$grace of partition $SLURM_JOB_PARTITION is what a preempted run has to save; the last time that" \
      "this run was asked to leave it was killed before it had saved: it may go back to its last checkpoint, which save.every_steps places"
  elif [[ -n $took ]] && ((took > grace)); then
    say "GraceTime=$grace of partition $SLURM_JOB_PARTITION is too short for a save: to end a step and save took this" \
      "run $took s the last time; preempted, it goes back to its last checkpoint, which save.every_steps places"
  else
    say "preemption would leave $grace s to end a step and save (GraceTime of partition $SLURM_JOB_PARTITION)"
  fi
}

event() { # RUN_DIR KIND TEXT: a line of its events.jsonl; kinds: KINDS in r1mega/runtime/events.py
  local text=${3//\\/\\\\} now before='' file=$1/events.jsonl
  text=${text//\"/\\\"}
  printf -v now '%(%s)T' -1
  [[ ! -s $file || -z $(tail -c 1 "$file" 2>/dev/null) ]] || before=$'\n' # half a line of a writer that was killed
  printf '%s{"time": %s, "kind": "%s", "step": null, "text": "%s", "host": "%s"}\n' \
    "$before" "$now" "$2" "${text//[[:cntrl:]]/ }" "${HOSTNAME-}" 2>/dev/null >>"$file" || true
}

requeued_by_others() { # RUN_DIR: an event where this start follows one that did not requeue the job itself
  local before=$((${SLURM_RESTART_COUNT:-0} - 1))
  ((before >= 0)) || return 0
  [[ $(cat "$1/logs/requeued" 2>/dev/null) == "$JOB $before" ]] ||
    event "$1" requeued "by Slurm or by an operator: start $((before + 1)) of job $JOB"
}

lost_nodes() { # RUN_DIR: says which nodes this job's last start had and this one has not, where they are not well
  local node last state starts=$1/logs/starts.txt
  last=$(awk -v job="$JOB" '$2 == job { nodes[++n] = $8 } END { print nodes[n - 1] }' "$starts" 2>/dev/null) || return 0
  for node in ${last//,/ }; do
    [[ ",$(nodes_of_job)," != *",$node,"* ]] || continue
    state=$(scontrol show --oneliner node "$node" 2>/dev/null | field State) || continue
    [[ $state =~ DOWN|FAIL|NOT_RESPONDING|POWER ]] || continue
    say "$node, which the last start had, is $state"
    event "$1" node-lost "$node, which the last start had, is $state"
  done
}

nodes_of_job() { # N1,N2,...
  scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ,
}

# ---- starts that come to nothing ----------------------------------------------------------------------------

kept_of() { # RUN_DIR: a number that is another one once there is more to go on from: a checkpoint, answers, the end
  (
    cd "$1" 2>/dev/null || exit 0
    find checkpoints journal summary.json -maxdepth 2 \
      \( -name 'step_*' -printf '%p\n' -o -name '*.jsonl' -printf '%p %s\n' -o -name summary.json -print \) 2>/dev/null ||
      true
  ) | sort | cksum | tr ' ' :
}

idle_starts() { # RUN_DIR: counts this start; prints how many before it, in a row, left nothing to go on from
  local kept starts=$1/logs/starts.txt
  kept=$(kept_of "$1")
  mkdir -p "$1/logs" 2>/dev/null || return 0 # where that cannot be, the run itself says so
  touch "$starts"
  tac "$starts" | awk -v job="$JOB" -v kept="$kept" '$2 == job { if ($6 != kept) exit; n++ } END { print n + 0 }'
  echo "job $JOB start ${SLURM_RESTART_COUNT:-0} kept $kept nodes $(nodes_of_job)" >>"$starts"
}
