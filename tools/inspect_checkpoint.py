"""`r1mega convert inspect` as a script: `python tools/inspect_checkpoint.py DIR [--tensors]`."""

import sys

from r1mega.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert", "inspect"]
    main()
