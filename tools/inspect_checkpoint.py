"""`r1mega convert inspect` as a script: `python tools/inspect_checkpoint.py DIR [--tensors]`."""

import sys

try:
    from r1mega.cli import main
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"inspect_checkpoint: {said}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.argv[1:1] = ["convert", "inspect"]
    main()
