#!/usr/bin/env bash
# One trainer rank as srun starts it: torchrun's variables from Slurm's, then the command.
#
#   srun --kill-on-bad-exit=1 ... slurm/rank.sh LOG_DIR COMMAND...    MASTER_ADDR and MASTER_PORT are the caller's
#
# The exit code of the first rank that fails goes to LOG_DIR/first_failure, as "RANK CODE": srun's own is the highest
# of all, and those that srun ends for the first one's sake leave with 143. A rank that only lost another one may be
# seen before that one; it goes to LOG_DIR/first_loss, which counts where there is no first_failure. LOG_DIR/begun says
# that a rank was started at all, LOG_DIR/leaving_s how long the first one took to leave when it was last asked to:
# "unfinished" where it never came to it.
set -euo pipefail
log_dir=$1
shift
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
if ((RANK > 0)); then
  mkdir -p "$log_dir"
  exec >>"$log_dir/rank_$RANK.log" 2>&1
fi
# What describes this step would be taken for the wish of an srun that cluster.rollout.launch names.
for name in ${!SLURM_*}; do
  case $name in
    SLURM_CONF | SLURM_JOB_ID | SLURM_JOB_NODELIST | SLURM_CLUSTER_NAME) ;;
    *) unset "$name" ;;
  esac
done

note() { # FILE TEXT
  ((RANK > 0)) || echo "$2" 2>/dev/null >"$log_dir/$1" || true
}

asked=
note begun "$SLURM_JOB_ID"
"$@" &
at() { # SIGNAL PID: Slurm sends it to this task alone
  told=yes
  [[ -n $asked ]] || note leaving_s unfinished
  asked=${asked:-$SECONDS}
  kill "-$1" "$2" 2>/dev/null || true
}
for signal in TERM USR1; do
  # shellcheck disable=SC2064 # the process id as it is now
  trap "at $signal $!" "$signal"
done
while true; do
  told='' code=0
  wait $! || code=$?
  [[ -n $told ]] || break # a trap ends `wait` early
done
[[ -z $asked ]] || note leaving_s $((SECONDS - asked))
((code != 0)) || exit 0
record=first_failure
if ((code == 75 || code == 134)); then # RanksLostError, or the SIGABRT of gloo's threads: as in runtime/ranks.py
  record=first_loss
elif [[ -n $asked && -e $log_dir/first_loss ]]; then # most likely by srun, for that one's sake
  record=first_loss
fi
(set -o noclobber && echo "$RANK $code" >"$log_dir/$record") 2>/dev/null || true
case $code in
  130 | 138 | 143) exit 0 ;; # it was asked to leave, and so were the others: they may still be saving
esac
# With this exit srun ends the other ranks. They often fail as well, and rank 0's words are the ones that are read.
((WORLD_SIZE == 1)) || sleep 5
exit "$code"
