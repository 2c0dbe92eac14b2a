"""Wait for Transformer Engine's PyTorch part, which check.py began to compile at its start."""

import os
import sys
import time
from pathlib import Path

from report import Report


def main() -> None:
    report = Report(__doc__ or "")
    engine, out = (Path(os.environ.get(name, ".")) for name in ("R1MEGA_ENGINE", "R1MEGA_OUT"))
    if not report.cuda:
        report.skip("needs a GPU machine's torch and CUDA's headers")
    log, ended, start = out / "compile.log", out / "compile.rc", time.monotonic()
    while not any(engine.glob("transformer_engine_torch*.so")):
        if ended.exists():
            print(log.read_text()[-4000:] if log.exists() else "nothing was begun")
            sys.exit("te_build: it was not compiled")
        if not log.exists() and time.monotonic() - start > 5:
            sys.exit("te_build: neither an extension nor its sources in the carry")
        time.sleep(0.5)
    report.note(
        waited_s=round(time.monotonic() - start, 1), said=log.read_text()[-2500:] if log.exists() else "prebuilt"
    )


if __name__ == "__main__":
    main()
