"""What has become of what was launched, as a tree of lines for people."""

from collections.abc import Mapping
from pathlib import Path

from r1mega.launchers.job import JobState, LaunchOptions, Phase, Submitted
from r1mega.launchers.record import LaunchRecord
from r1mega.launchers.registry import launcher

State = tuple[Submitted | None, JobState]
DONE_BEFORE = JobState(Phase.DONE, "before the last launch")
NOT_LAUNCHED = JobState(Phase.UNKNOWN, "not launched")


def states(record: LaunchRecord) -> dict[str, State]:
    """The last job of every stage and what has become of it, in the chain's order.

    A job that was cancelled for the sake of another one names that one.

    Raises: as `Launcher.states`.
    """
    jobs = record.latest()
    before = record.done_before()
    found: dict[str, State] = {name: (None, DONE_BEFORE if name in before else NOT_LAUNCHED) for name in jobs}
    of = {launch.launcher: launch.settings for launch in record.launches}
    for name, settings in of.items():
        its = [job for job in jobs.values() if job is not None and job.launcher == name]
        if its:
            asked = launcher(name, LaunchOptions(Path(record.root), settings)).states(its)
            found |= {job.job.name: (job, state) for job, state in zip(its, asked, strict=True)}
    return {name: (job, _because(job, state, found)) for name, (job, state) in found.items()}


def _because(job: Submitted | None, state: JobState, found: Mapping[str, State]) -> JobState:
    if job is None or state.phase is not Phase.CANCELLED or state.exit_code:
        return state
    causes = [
        f"{name} {'has failed' if found[name][1].phase is Phase.FAILED else 'was cancelled'}"
        for name in job.job.after
        if name in found and found[name][1].phase in (Phase.FAILED, Phase.CANCELLED)
    ]
    return JobState(state.phase, f"{' and '.join(causes)}, and this needs it" if causes else state.reason)


def lines(record: LaunchRecord, found: Mapping[str, State]) -> list[str]:
    """The tree: a stage stands below the last one that it waits for, in the chain's order."""
    below: dict[str, list[str]] = {}
    others: dict[str, int] = {}
    for name, (job, _) in found.items():
        after = [other for other in found if job is not None and other in job.job.after]
        below.setdefault(after[-1] if after else "", []).append(name)
        others[name] = len(after) - 1
    drawn: list[tuple[str, str]] = []

    def draw(parent: str, indent: str) -> None:
        names = below.get(parent, [])
        for name in names:
            last = name == names[-1]
            drawn.append((f"{indent}{'└─ ' if last else '├─ '}{name}", name))
            draw(name, indent + ("   " if last else "│  "))

    draw("", "")
    width = max(len(text) for text, _ in drawn)
    return [f"{text:{width}}  {_said(*found[name], others[name])}" for text, name in drawn]


def _said(job: Submitted | None, state: JobState, others: int) -> str:
    known = f"job {job.id}" if job is not None else ""
    waits = f"also after {others} other(s)" if others > 0 and state.phase is Phase.WAITING else ""
    parts = [part for part in (known, state.reason, waits) if part]
    return f"{state.phase:9}" + (f"  {'; '.join(parts)}" if parts else "")
