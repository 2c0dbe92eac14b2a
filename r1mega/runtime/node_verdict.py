"""Which nodes of a job are fit to start on, from what they say of themselves and how they met: arithmetic alone."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from r1mega.config.environment import Checks
from r1mega.runtime.node_report import NodeReport

Phase = Literal["told", "here", "met", "done"]
PHASES: Mapping[Phase, str] = {
    "told": "was told to come, and has not",
    "here": "came, and the group did not form with it",
    "met": "met the others, and came to no end of the sum",
    "done": "is through",
}
"""How far a node's processes have come in the all-reduce, in this order; the one that has come least far counts."""
ALONE = 4
"""Nodes from which on a slow link is its node's fault: with fewer, it has as many links with each end."""

Faults = dict[str, list[str]]
"""Node -> what is wrong with it, a sentence each; no node in which nothing is wrong."""


@dataclass
class Met:
    """What came of the all-reduce on one node."""

    phase: Phase = "told"
    failed: str = ""
    """What one of its processes ended with."""
    gone: bool = False
    """Whether its step has ended in the middle of it, which the others then fail for."""
    links: dict[str, float] = field(default_factory=dict[str, float])
    """Other node -> MiB/s to it and back."""
    seconds: float = 0.0
    """Of the sum."""


def judge_reports(
    nodes: Sequence[str], reports: Mapping[str, NodeReport], checks: Checks, *, gpus: int, run_dir: str
) -> Faults:
    """What is wrong with nodes by themselves, and by their difference from the others.

    Args:
        nodes: all of the job's, the first one being that of the batch script.
        gpus: that each must have.
        run_dir: as messages name it.
    """
    found: Faults = {}
    clock, code = _usual_clock(nodes, reports), _usual_code(nodes, reports)
    for node in nodes:
        told = reports.get(node)
        if told is None:
            found[node] = [f"has not answered within {checks.report_s:g} s (environment.checks.report_s)"]
            continue
        faults = [*_gpu_faults(told, checks, gpus), *_disk_faults(told, checks, run_dir)]
        if abs(ahead := told.skew_s - clock) > checks.clock_skew_s:
            faults.append(
                f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the others', and may be "
                f"{checks.clock_skew_s:g} s (environment.checks.clock_skew_s)"
            )
        if (told.version, told.code) != code:
            faults.append(
                f"has r1mega {told.version or '(not installed)'}, code {told.code}, and the others {code[0]}, code "
                f"{code[1]}: another checkout or image"
            )
        if faults:
            found[node] = faults
    return found


def judge_meetings(meetings: Mapping[str, Met], checks: Checks) -> tuple[Faults, str]:
    """Which nodes an all-reduce failed for, of those that were told to come; and why nobody can say, where it failed
    and all have come equally far."""
    found: Faults = {}
    order = list(PHASES)
    least = min((order.index(one.phase) for one in meetings.values()), default=len(order) - 1)
    if order[least] != "done":
        behind = {node for node, one in meetings.items() if order.index(one.phase) == least}
        causes = {node: one.failed for node, one in meetings.items() if one.failed}
        gone = {node for node, one in meetings.items() if one.gone}
        if 0 < len(gone) < len(meetings):
            return {node: ["its step ended in the middle of the all-reduce"] for node in gone}, ""
        alone = {node for node in causes if meetings[node].phase == "told"}
        if 0 < len(alone) < len(meetings):
            return {node: [f"cannot take part in the all-reduce: {causes[node]}"] for node in alone}, ""
        if len(behind) < len(meetings):
            for node in behind:
                said = f": {causes[node]}" if node in causes else ""
                found[node] = [
                    f"{PHASES[order[least]]} within {checks.all_reduce_s:g} s (environment.checks.all_reduce_s), and "
                    f"{len(meetings) - len(behind)} of {len(meetings)} nodes have{said}"
                ]
            return found, ""
        words = "".join(f"; {node}: {cause}" for node, cause in causes.items())
        return {}, (
            f"no all-reduce over {', '.join(meetings)}: every node {PHASES[order[least]]} within "
            f"{checks.all_reduce_s:g} s (environment.checks.all_reduce_s), so that none can be named: look "
            f"whether they reach each other over the interface that the cluster file or the environment names{words}"
        )
    return _slow(meetings, checks), ""


def _slow(meetings: Mapping[str, Met], checks: Checks) -> Faults:
    """Nodes all of whose links are slow. A link that is slow at one end alone is a node's at neither."""
    links = [rate for one in meetings.values() for rate in one.links.values()]
    if len(meetings) < ALONE or not links or not checks.slow_link:
        return {}
    usual = statistics.median(links)
    return {
        node: [
            f"is slow: {max(one.links.values()):.0f} MiB/s at most, and {usual:.0f} is usual here "
            f"(environment.checks.slow_link = {checks.slow_link:g})"
        ]
        for node, one in meetings.items()
        if one.links and max(one.links.values()) < checks.slow_link * usual
    }


def _gpu_faults(told: NodeReport, checks: Checks, gpus: int) -> list[str]:
    if told.gpu_fault:
        return [told.gpu_fault]
    faults = list(told.xids)
    if told.gpus is None:
        return faults
    if len(told.gpus) < gpus:
        faults.append(f"has {len(told.gpus)} GPU(s) instead of {gpus}")
    for gpu in told.gpus:
        faults += [f"GPU {gpu.index} ({gpu.name}): {fault}" for fault in gpu.faults]
        if gpu.used_gib > checks.gpu_used_gib:
            faults.append(
                f"GPU {gpu.index} ({gpu.name}): {gpu.used_gib:.1f} GiB are in use by another process "
                f"(environment.checks.gpu_used_gib = {checks.gpu_used_gib:g})"
            )
    return faults


def _disk_faults(told: NodeReport, checks: Checks, run_dir: str) -> list[str]:
    if told.canary_fault:
        return [
            f"does not share {run_dir} with the first node ({told.canary_fault}): it is not mounted there, or "
            "environment.container.mounts lacks it"
        ]
    faults: list[str] = []
    for what, fault, free, least, setting in (
        (run_dir, told.run_dir_fault, told.run_dir_free_gib, checks.run_dir_free_gib, "run_dir_free_gib"),
        (told.tmp, told.tmp_fault, told.tmp_free_gib, checks.tmp_free_gib, "tmp_free_gib"),
    ):
        if fault:
            faults.append(f"cannot write to {what}: {fault}")
        elif free < least:
            faults.append(f"{what} has {free:.2f} GiB free of the {least:g} of environment.checks.{setting}")
    return faults


def _usual_clock(nodes: Sequence[str], reports: Mapping[str, NodeReport]) -> float:
    """By how much most clocks are ahead of the first node's; of two nobody can say which is right."""
    skews = [reports[node].skew_s for node in nodes if node in reports]
    return statistics.median_low(skews) if len(skews) > 2 else 0.0


def _usual_code(nodes: Sequence[str], reports: Mapping[str, NodeReport]) -> tuple[str, str]:
    """Version and code of most nodes; of as many of each, the first one's."""
    counted = Counter((reports[node].version, reports[node].code) for node in nodes if node in reports)
    return counted.most_common(1)[0][0] if counted else ("", "")
