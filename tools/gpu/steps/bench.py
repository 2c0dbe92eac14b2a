"""tools/bench/trainer.py: one process a variant, two layers of V3's sizes, 16,384 tokens a step."""

import json
import os
import subprocess
import sys
from pathlib import Path

from report import ROOT, Report

ON = {
    "cuda": ["bf16", "bf16_apart", "blockwise", "--layers", "2", "--tokens", "16384", "--repetitions", "4"],
    "cpu": ["fp32", "fp32_recompute", "bf16", "--layers", "2", "--tokens", "512", "--repetitions", "1"],
}


def main() -> None:
    report = Report(__doc__ or "")
    out = Path(os.environ.get("R1MEGA_OUT", "."), "bench_results.json")
    command = [sys.executable, str(ROOT / "tools/bench/trainer.py"), "--device", report.device, "--out", str(out)]
    environment = dict(os.environ)
    if not report.cuda and "R1MEGA_ENGINE" in environment:  # without its libraries it breaks Megatron's import
        path = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in path if p != environment["R1MEGA_ENGINE"])
    done = subprocess.run([*command, "--variants", *ON[report.device]], env=environment)
    found = json.loads(out.read_text()) if out.exists() else {}
    kept = {name: {k: v for k, v in one.items() if k != "process"} for name, one in found.get("variants", {}).items()}
    report.note(variants=kept, refused=found.get("refused"), failed=found.get("failed"))
    unmeasured = report.cuda and (found.get("refused") or len(kept) < 3)
    sys.exit(done.returncode or int(bool(unmeasured)))


if __name__ == "__main__":
    main()
