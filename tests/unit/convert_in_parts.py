"""One conversion in small parts, to be killed: `convert_in_parts.py SOURCE OUT FORM PROCESSES`."""

import sys
from pathlib import Path

import torch

from r1mega.conversion.convert import Options, convert

if __name__ == "__main__":
    torch.set_num_threads(1)
    source, out, form, processes = sys.argv[1:]
    print("converting", flush=True)
    options = Options(int(processes), part_bytes=1 << 18, shard_bytes=2 << 20)
    report = convert(Path(source), Path(out), "hf" if form == "hf" else "megatron", None, options)
    print("kept", report.num_kept, flush=True)
