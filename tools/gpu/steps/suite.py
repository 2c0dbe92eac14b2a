"""Tests of tests/gpu, chosen by the arguments that follow --device, with pytest's own report beside the results."""

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from report import ROOT, Report


def counts(junit: Path) -> tuple[dict[str, int], dict[str, float], list[str]]:
    """How many tests ended how, seconds of each, and which did not pass."""
    seconds: dict[str, float] = {}
    ended = {"passed": 0, "failed": 0, "skipped": 0}
    bad = []
    for case in ElementTree.parse(junit).iter("testcase"):
        found = {part.tag for part in case}
        how = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        ended[how] += 1
        seconds[case.attrib["name"]] = round(float(case.attrib["time"]), 1)
        if how != "passed":
            messages = [str(part.get("message", ""))[:500] for part in case if part.get("message")]
            bad.append(f"{how}: {case.attrib['name']}: {' '.join(messages)}")
    return ended, seconds, bad


def main() -> None:
    report = Report(__doc__ or "", others=True)
    os.environ["R1MEGA_GPU_TESTS_DEVICE"] = report.device
    import pytest

    junit = Path(os.environ.get("R1MEGA_OUT", "."), f"{os.environ.get('R1MEGA_STEP', 'suite')}.xml")
    code = pytest.main(
        [str(ROOT / "tests/gpu"), "-q", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={junit}", *report.rest]
    )
    ended, seconds, bad = counts(junit)
    report.note(**ended, seconds=seconds, not_passed=bad)
    if code == pytest.ExitCode.OK and ended["passed"] == 0:
        engine_is_stubbed(report)
    # A test that is skipped on a GPU is a question without an answer, unless two are asked for.
    unanswered = [one for one in bad if one.startswith("skipped") and "one CUDA device" not in one]
    sys.exit(code if code else int(bool(report.cuda and unanswered)))


def engine_is_stubbed(report: Report) -> None:
    """No test could run: on the CPU those of Transformer Engine's layers go as far as its first kernel instead."""
    if not report.cuda:
        import te_python

        te_python.build_and_reach(report, "none")
    report.skip("no test could run: " + "; ".join(report.figures["not_passed"])[:500])


if __name__ == "__main__":
    main()
