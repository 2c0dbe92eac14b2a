#!/usr/bin/env bash
# A node of the rollout servers: starts there what rank 0 orders, in a folder that all nodes share.
#
#   srun ... slurm/server.sh FOLDER ADDRESS,ADDRESS... COMMAND...    a task a node, and each one's address
#
# COMMAND is what Python's arguments are put behind: the interpreter, with what sets its variables before it.
#
# Ends when there is a file FOLDER/over. Until then it is started again when it ends (r1mega/rollout/attendant.py).
#
# Slurm sends SIGTERM to every step of a job that it preempts. The trainer then finishes its step, for which it needs
# the servers, and stops them itself: so they are kept out of Slurm's sight, in a session of their own, and end when
# this task does, however that is (r1mega/runtime/process.py).
set -euo pipefail
folder=$1
IFS=, read -ra addresses <<<"$2"
node=$SLURM_PROCID
python=("${@:3}")
told=
trap 'told=yes' TERM USR1
while [[ ! -e $folder/over ]]; do
  setsid "${python[@]}" -m r1mega.runtime.process $$ \
    "${python[@]}" -m r1mega.rollout.attendant "$folder" "$node" "${addresses[node]}" &
  while true; do
    told='' code=0
    wait $! || code=$?
    [[ -n $told ]] || break # a trap ends `wait` early
  done
  [[ -e $folder/over ]] || echo "node $node of the rollout servers: its process has ended with code $code; again"
  sleep 1
done
