"""What a node says of itself: nvidia-smi's and the kernel's words, written after their manuals; disks that fail."""

import errno
import os
import sys
import threading
from dataclasses import replace

import pytest

from r1mega.runtime import node_report
from r1mega.runtime.node_report import (
    Gpu,
    NodeReport,
    ask_gpus,
    canary_fault,
    free_gib,
    package,
    parse_gpus,
    parse_xids,
    report,
    write_fault,
)

WELL = """0, NVIDIA H100 80GB HBM3, 81559, 4, 0, No, No
1, NVIDIA H100 80GB HBM3, 81559, 3072, 0, No, No
"""
ILL = """0, NVIDIA A100-SXM4-80GB, 81920, 0, 3, No, No
1, NVIDIA A100-SXM4-80GB, 81920, 0, 0, Yes, No
2, NVIDIA A100-SXM4-80GB, 81920, 0, 0, Yes, Yes
3, NVIDIA A100-SXM4-80GB, [GPU requires reset], [GPU requires reset], [GPU requires reset], No, No
4, [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error]
"""
WITHOUT_ECC = "0, NVIDIA GeForce RTX 4090, 24564, 210, [N/A], [N/A], [N/A]\n"
LOST = f"{WELL.splitlines()[0]}\nUnable to determine the device handle for GPU0000:3B:00.0: GPU is lost\n"
KERNEL = """[    3.141592] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15
[ 1000.000001] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[ 9000.500000] NVRM: Xid (PCI:0000:86:00): 13, pid=4242, name=python, Graphics SM Warp Exception
[ 9001.250000] NVRM: Xid (PCI:0000:86:00): 48, pid=4242, name=python, DBE (double bit error) ECC Error
[ 9001.250001] NVRM: Xid (PCI:0000:86:00): 48, pid=4242, name=python, DBE (double bit error) ECC Error
"""
"""As dmesg prints them; of the first one the time is put before the hour that is looked at."""


def test_gpus_that_are_well():
    assert parse_gpus(WELL) == (Gpu("0", "NVIDIA H100 80GB HBM3", 4 / 1024), Gpu("1", "NVIDIA H100 80GB HBM3", 3.0))
    assert parse_gpus(WITHOUT_ECC) == (Gpu("0", "NVIDIA GeForce RTX 4090", 210 / 1024),)
    assert parse_gpus("") == ()


def test_gpus_that_are_ill_say_why():
    found = parse_gpus(ILL)
    assert [gpu.faults for gpu in found] == [
        ("3 uncorrected ECC error(s) since it was reset",),
        ("a row of its memory waits to be remapped, for which it must be reset",),
        ("a row of its memory could not be remapped",),
        ("nvidia-smi says [GPU requires reset] of it",),
        ("nvidia-smi says [Unknown Error] of it",),
    ]
    well, lost = parse_gpus(LOST)
    assert well.faults == () and "GPU is lost" in lost.faults[0]


def test_kernel_messages_of_broken_gpus_in_the_last_hour():
    assert parse_xids(KERNEL, uptime_s=9500.0) == ("Xid 48 of GPU 0000:86:00 (double-bit ECC error)",)
    assert parse_xids(KERNEL, uptime_s=4000.0)[0] == "Xid 79 of GPU 0000:3b:00 (GPU has fallen off the bus)"
    assert parse_xids("", 1.0) == ()


def test_a_driver_that_does_not_answer_is_a_fault_and_a_missing_program_is_not(tmp_path, monkeypatch):
    assert ask_gpus((str(tmp_path / "no-nvidia-smi"),)) == (None, "")
    smi = tmp_path / "nvidia-smi"
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    smi.write_text(f'#!/bin/sh\necho "{failed}"\nexit 9\n')
    smi.chmod(0o755)
    assert ask_gpus((str(smi),)) == ((), f"{smi} ended with code 9: {failed}")
    smi.write_text(f"#!/bin/sh\ncat <<END\n{WELL}END\n")
    assert ask_gpus((str(smi),)) == (parse_gpus(WELL), "")
    monkeypatch.setattr(node_report, "COMMAND_S", 0.2)
    assert ask_gpus((sys.executable, "-c", "import time; time.sleep(60)"))[1].endswith("the driver hangs")
    smi.chmod(0o644)
    assert "Permission denied" in ask_gpus((str(smi),))[1]


def test_a_disk_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    assert write_fault(tmp_path) == "" and list(tmp_path.iterdir()) == []
    assert write_fault(tmp_path / "none") == os.strerror(errno.ENOENT)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert write_fault(tmp_path) == "No space left on device" and list(tmp_path.iterdir()) == []


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    there = os.statvfs(tmp_path)
    expected = there.f_bavail * there.f_frsize / 2**30
    assert free_gib(tmp_path / "a/b") == pytest.approx(expected, rel=0.05)


def test_a_canary_may_be_late_and_must_hold_the_word(tmp_path):
    file = tmp_path / "canary"
    assert canary_fault(file, "word", 0.0) == os.strerror(errno.ENOENT)
    late = threading.Timer(0.3, lambda: file.write_text("word"))
    late.start()
    assert canary_fault(file, "word", 20.0) == ""
    assert "something else" in canary_fault(file, "other", 0.0)


def test_the_package_is_known_by_its_files(tmp_path, monkeypatch):
    version, code = package()
    assert version and len(code) == 12 and package() == (version, code)
    copy = tmp_path / "r1mega/runtime/node_report.py"
    copy.parent.mkdir(parents=True)
    copy.write_text("a = 1\n")
    monkeypatch.setattr(node_report, "__file__", str(copy))
    first = package()[1]
    copy.write_text("a = 2\n")
    second = package()[1]
    copy.rename(copy.with_name("other.py"))
    assert len({code, first, second, package()[1]}) == 4


def test_a_report_is_the_same_after_its_way_through_json(tmp_path, monkeypatch):
    (tmp_path / "canary").write_text("word")
    monkeypatch.setattr(node_report, "ask_gpus", lambda: (parse_gpus(ILL), ""))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = report("n1", tmp_path, (tmp_path / "canary", "word"), gpus=5, skew_s=0.25)
    assert NodeReport.read(found.record()) == found
    assert (found.canary_fault, found.tmp, found.skew_s) == ("", str(tmp_path), 0.25)
    assert found.gpus == parse_gpus(ILL) and found.seconds > 0
    without = report("n1", tmp_path, (tmp_path / "canary", "word"), gpus=0, skew_s=0.0)
    assert without.gpus is None
    assert NodeReport.read(replace(without, xids=("a",)).record()).xids == ("a",)
