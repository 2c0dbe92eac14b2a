"""`r1mega convert` as a script: `python tools/convert_checkpoint.py to-megatron | to-hf | verify ...`."""

import sys

from r1mega.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
