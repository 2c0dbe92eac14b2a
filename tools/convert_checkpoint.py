"""`r1mega convert` as a script: `python tools/convert_checkpoint.py to-megatron | to-hf | verify ...`."""

import sys

try:
    from r1mega.cli import main
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"convert_checkpoint: {said}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
