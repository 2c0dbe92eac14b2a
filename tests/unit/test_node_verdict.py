"""Which nodes are fit to start on: verdicts on reports made by hand."""

from dataclasses import replace

import pytest

from r1mega.config.environment import Checks
from r1mega.runtime.node_report import Gpu, NodeReport
from r1mega.runtime.node_verdict import Met, judge_meetings, judge_reports

CHECKS = Checks()
WELL = NodeReport("n1", run_dir_free_gib=100.0, tmp_free_gib=50.0, version="0.1", code="abc")
H100 = Gpu("0", "NVIDIA H100 80GB HBM3", 0.4)


def verdict(*reports: NodeReport | None, gpus: int = 0, checks: Checks = CHECKS) -> dict[str, list[str]]:
    """On n1, n2, ..., None being one that has said nothing."""
    names = [f"n{k}" for k in range(1, len(reports) + 1)]
    said = {name: told for name, told in zip(names, reports, strict=True) if told is not None}
    return judge_reports(names, said, checks, gpus=gpus, run_dir="/runs/a")


def only(**changes: object) -> str:
    """The one fault of the second of three nodes that differs from the others in this."""
    found = verdict(WELL, replace(WELL, **changes), WELL)
    assert list(found) == ["n2"]
    (fault,) = found["n2"]
    return fault


def test_in_nodes_that_are_well_nothing_is_wrong():
    assert verdict(WELL, WELL, WELL) == {}
    assert verdict(replace(WELL, gpus=(H100, H100)), gpus=2) == {}
    assert verdict(WELL, gpus=2) == {}  # nobody could be asked about GPUs


def test_one_that_says_nothing_is_named_with_the_limit():
    assert verdict(WELL, None) == {"n2": ["has not answered within 60 s (environment.checks.report_s)"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tmp_free_gib": 0.25, "tmp": "/scratch"},
            "/scratch has 0.25 GiB free of the 1 of environment.checks.tmp_free",
        ),
        ({"run_dir_free_gib": 0.5}, "/runs/a has 0.50 GiB free of the 1 of environment.checks.run_dir_free_gib"),
        ({"tmp_fault": "No space left on device"}, "cannot write to /tmp: No space left on device"),
        ({"run_dir_fault": "Read-only file system"}, "cannot write to /runs/a: Read-only file system"),
        ({"canary_fault": "No such file or directory"}, "does not share /runs/a with the first node (No such file"),
        ({"skew_s": 6.0}, "its clock is 6.0 s ahead of the others', and may be 5 s"),
        ({"skew_s": -7.5}, "its clock is 7.5 s behind the others'"),
        ({"version": "0.2"}, "has r1mega 0.2, code abc, and the others 0.1, code abc"),
        ({"code": "def"}, "has r1mega 0.1, code def, and the others 0.1, code abc"),
        ({"gpu_fault": "nvidia-smi ended with code 9"}, "nvidia-smi ended with code 9"),
        ({"xids": ("Xid 79 of GPU 0000:3b:00 (GPU has fallen off the bus)",)}, "Xid 79 of GPU"),
        ({"gpus": (replace(H100, used_gib=30.0),)}, "30.0 GiB are in use by another process"),
        (
            {"gpus": (replace(H100, faults=("2 uncorrected ECC error(s)",)),)},
            "GPU 0 (NVIDIA H100 80GB HBM3): 2 uncorr",
        ),
    ],
)
def test_what_one_node_alone_has_is_told(changes: dict[str, object], said: str):
    assert only(**changes).startswith(said) or said in only(**changes)


def test_what_is_within_the_limits_is_no_fault():
    within = replace(WELL, tmp_free_gib=1.0, run_dir_free_gib=1.0, skew_s=5.0, gpus=(replace(H100, used_gib=2.0),))
    assert verdict(WELL, within, WELL) == {}
    tight = Checks(tmp_free_gib=1.5, run_dir_free_gib=1.5, clock_skew_s=4.0, gpu_used_gib=1.0)
    assert len(verdict(WELL, within, WELL, checks=tight)["n2"]) == 4


def test_too_few_gpus_are_counted():
    found = verdict(replace(WELL, gpus=(H100,) * 8), replace(WELL, gpus=(H100,) * 7), gpus=8)
    assert found == {"n2": ["has 7 GPU(s) instead of 8"]}


def test_the_first_node_may_be_the_one_whose_clock_is_off():
    """All others are then ahead of it by as much."""
    others = replace(WELL, skew_s=60.0)
    assert list(verdict(WELL, others, others, others)) == ["n1"]
    assert list(verdict(WELL, others)) == ["n2"]  # of two nobody knows; the job's script is on the first


def test_the_first_node_may_be_the_one_with_another_code():
    other = replace(WELL, code="def")
    assert list(verdict(other, WELL, WELL)) == ["n1"]
    assert list(verdict(other, WELL)) == ["n2"]


def met(phase: str, failed: str = "", *, gone: bool = False, **links: float) -> Met:
    return Met(phase=phase, failed=failed, gone=gone, links=links)  # type: ignore[arg-type]


def test_nodes_that_are_through_are_fit():
    assert judge_meetings({"n1": met("done"), "n2": met("done")}, CHECKS) == ({}, "")


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("told", "was told to come, and has not within 120 s"),
        ("here", "came, and the group did not form with it within 120 s"),
        ("met", "met the others, and came to no end of the sum within 120 s"),
    ],
)
def test_the_node_that_came_least_far_is_named(phase: str, said: str):
    later = {"told": "here", "here": "met", "met": "done"}[phase]
    found, why = judge_meetings({"n1": met(later), "n2": met(phase), "n3": met(later, "timed out")}, CHECKS)
    assert list(found) == ["n2"] and why == ""
    assert found["n2"][0].startswith(said) and "2 of 3 nodes have" in found["n2"][0]


def test_its_own_words_are_told():
    found, _ = judge_meetings({"n1": met("met"), "n2": met("here", "OSError: no libnccl"), "n3": met("met")}, CHECKS)
    assert found["n2"][0].endswith(": OSError: no libnccl")


def test_one_that_fails_before_it_meets_anybody_is_named_whatever_the_others_do_meanwhile():
    found, why = judge_meetings({"n1": met("told"), "n2": met("told", "no torch"), "n3": met("here")}, CHECKS)
    assert (found, why) == ({"n2": ["cannot take part in the all-reduce: no torch"]}, "")


def test_one_whose_step_has_ended_is_why_the_others_failed():
    found, why = judge_meetings({"n1": met("here", "Connection reset"), "n2": met("here", gone=True)}, CHECKS)
    assert (found, why) == ({"n2": ["its step ended in the middle of the all-reduce"]}, "")


def test_where_all_have_come_equally_far_none_is_named_and_why_is_said():
    found, why = judge_meetings({"n1": met("here", "timed out"), "n2": met("here")}, CHECKS)
    assert found == {} and "no all-reduce over n1, n2: every node came, and the group did not form" in why
    assert why.endswith("; n1: timed out")


def test_a_node_all_of_whose_links_are_slow_is_named():
    """On a ring of four: a link is as slow for both its ends."""
    ring = {
        "n1": met("done", n2=100.0, n4=1000.0),
        "n2": met("done", n1=100.0, n3=120.0),
        "n3": met("done", n2=120.0, n4=1100.0),
        "n4": met("done", n3=1100.0, n1=1000.0),
    }
    # The median of 100, 1000, 100, 120, 120, 1100, 1100, 1000 is 560, a quarter of it 140.
    found, _ = judge_meetings(ring, CHECKS)
    assert found == {
        "n2": ["is slow: 120 MiB/s at most, and 560 is usual here (environment.checks.slow_link = 0.25)"]
    }
    assert judge_meetings(ring, Checks(slow_link=0)) == ({}, "")
    ring["n2"].links["n3"] = ring["n3"].links["n2"] = 900.0  # one slow cable
    assert judge_meetings(ring, CHECKS) == ({}, "")
    del ring["n3"], ring["n4"]
    assert judge_meetings(ring, CHECKS) == ({}, "")  # too few to know
