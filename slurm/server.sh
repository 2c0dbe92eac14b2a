#!/usr/bin/env bash
# The rollout server's task on its own node, as rank 0's srun starts it.
#
#   srun ... slurm/server.sh COMMAND...
#
# Slurm sends SIGTERM to every step of a job that it preempts. The trainer then finishes its step, for which it needs
# the server, and stops it itself: so the server is kept out of Slurm's sight, in a session of its own, and ends when
# this task does, however that is (r1mega/runtime/process.py).
set -euo pipefail
told=
trap 'told=yes' TERM USR1
setsid "${R1MEGA_PYTHON:-.venv/bin/python}" -m r1mega.runtime.process $$ "$@" &
while true; do
  told='' code=0
  wait $! || code=$?
  [[ -n $told ]] || exit "$code"
done
