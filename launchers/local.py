"""One stage on this machine, started again after a crash: what slurm/rl_stage.sh does, without Slurm.

    python launchers/local.py CONFIG [--max-restarts N] [arguments of `r1mega run`]

Always resumes. A run that is done, that was given something wrong (exit code 2), or that was asked to leave (SIGINT,
SIGTERM, SIGUSR1: handed on to it; it saves) is not started again. The exit code is the last start's. `r1mega
launch CONFIG --launcher local` does the same in the background.
"""

import sys

try:
    from r1mega.launchers.local import main
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"local: {said}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(__doc__))
