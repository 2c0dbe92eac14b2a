"""The judging half of making preference data: who judges, so many judgements at once, and when they stop the run."""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from r1mega.config.cluster import Cluster
from r1mega.data.signed_rows import sha256_of
from r1mega.endpoint.asker import EndpointAsker
from r1mega.endpoint.cache import ReplyCache
from r1mega.endpoint.client import Client
from r1mega.endpoint.settings import Endpoint
from r1mega.errors import DataError, EndpointError, EndpointLostError
from r1mega.recipe.preferences import MakePreferences
from r1mega.rewards.asker import Asker
from r1mega.rewards.judge_forms import PAIR_FORMS, told
from r1mega.rewards.safety import SAFETY_SYSTEM
from r1mega.runtime import env
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.progress import Bar
from r1mega.runtime.provenance import RUN
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import VerdictStatus
from r1mega.stages.answering import Serve

AT_ONCE = 512
"""Judgements under way: all of them at once would hold every conversation with the judge in memory."""
SAID = "judge.jsonl"
"""In the run directory: what the judge has said, by content."""
LATEST = 64
"""Judgements of which a share may fail (`judge.max_failed`)."""


class AnyVerdict(Protocol):
    """What comes of one judgement."""

    @property
    def status(self) -> VerdictStatus: ...
    @property
    def reason(self) -> str: ...


C = TypeVar("C")
V = TypeVar("V", bound=AnyVerdict)


@dataclass(frozen=True)
class Judging:
    """A judge that can be asked."""

    asker: Asker
    who: Mapping[str, Any]
    """For provenance."""
    over: Callable[[], EndpointError | None]
    """Why it is asked nothing more: a budget, a refusal, a server that is gone."""


def judge_all(
    candidates: Sequence[C],
    submit: Callable[[C], Future[V]],
    over: Callable[[], EndpointError | None],
    *,
    max_failed: float,
    interrupt: Interrupt,
    title: str,
    unit: str,
) -> list[V]:
    """The verdicts on all candidates, in their order.

    Args:
        submit: has one judged; its future never raises.
        over: see `Judging`.
        max_failed: share of the latest that may fail through no fault of the answers.

    Raises:
        EndpointError, EndpointLostError: the judge is asked nothing more, or too many judgements failed, or some did
            and no other can be used.
        DataError: the first `LATEST` are all unscorable, so that the rest would be asked for in vain.
        StopNow: a signal came.
    """
    come: SimpleQueue[tuple[int, Future[V]]] = SimpleQueue()
    found, waiting, latest = dict[int, V](), iter(enumerate(candidates)), deque[bool](maxlen=LATEST)
    with interrupt.at_once(), Bar(title, len(candidates), unit=unit) as bar:
        bar.say(title, f"waiting for the first of {len(candidates):,} {unit}s")
        open_, ended = 0, None
        while True:
            while open_ < AT_ONCE and ended is None and (following := next(waiting, None)) is not None:
                index, candidate = following
                submit(candidate).add_done_callback(lambda done, index=index: come.put((index, done)))
                open_ += 1
            if not open_:
                break
            index, done = come.get()
            open_ -= 1
            found[index] = verdict = done.result()
            bar.advance()
            latest.append(verdict.status is VerdictStatus.FAILED)
            ended = ended or (over() if latest[-1] else None)  # what is under way is waited for: it is paid for
            if ended is None and sum(latest) > max_failed * LATEST:
                raise EndpointLostError(
                    f"{sum(latest)} of the latest {LATEST} judgements failed through no fault of the answers, more "
                    f"than judge.max_failed = {max_failed:g} lets pass: {verdict.reason}"
                )
            if len(found) == LATEST < len(candidates) and (why := why_none(found.values())):
                raise DataError(f"none of the first {LATEST} judgements can be used, and no more is asked; {why}")
    if ended is not None:
        raise ended
    lost = [verdict.reason for verdict in found.values() if verdict.status is VerdictStatus.FAILED]
    if lost and why_none(found.values()):
        raise EndpointLostError(
            f"no judgement can be used, and {len(lost)} of {len(found)} failed through no fault of the answers: "
            f"{lost[0]}"
        )
    return [found[index] for index in range(len(candidates))]


def why_none(verdicts: Collection[AnyVerdict]) -> str:
    """Why no verdict can be used, and how to mend it; "" where one can."""
    reasons = [verdict.reason for verdict in verdicts if verdict.status is not VerdictStatus.SCORED]
    if not reasons or any(verdict.status is VerdictStatus.SCORED for verdict in verdicts):
        return ""
    return (
        f"one of them: {reasons[0]}. What the judge says is in {SAID}; the same command with another judge, system, "
        "max_tokens or max_characters goes on from the answers, and without that file the same judge is asked anew"
    )


@contextmanager
def judged_by(
    config: MakePreferences, cluster: Cluster, run_dir: RunDir, interrupt: Interrupt, serve: Serve | None
) -> Iterator[Judging]:
    """The judge that the settings name. What it has said is kept in the run directory, and not asked for again.

    Args:
        serve: see `stages.answering.ask_folder`.
    """
    judge = config.judge
    making = (
        _of_endpoint(judge.endpoint, run_dir)
        if judge.endpoint
        else _of_folder(config, cluster, run_dir, interrupt, serve)
    )
    with making as judging:
        yield Judging(judging.asker, {**judging.who, **_asked_how(config)}, judging.over)


@contextmanager
def _of_endpoint(endpoint: Endpoint, run_dir: RunDir) -> Iterator[Judging]:
    """A server that is there already."""
    client = Client(endpoint, env.secret(endpoint.api_key_env) if endpoint.api_key_env else None)
    who = {"endpoint": endpoint.url, "model": endpoint.model, **({"extra": endpoint.extra} if endpoint.extra else {})}
    with EndpointAsker(client, ReplyCache(run_dir.path / SAID)) as asker:
        yield Judging(asker, who, lambda: client.over)


@contextmanager
def _of_folder(
    config: MakePreferences, cluster: Cluster, run_dir: RunDir, interrupt: Interrupt, serve: Serve | None
) -> Iterator[Judging]:
    """A Hugging Face folder, served here from the first question on that was not answered before."""
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.families.registry import check_tokenizer, read_model
    from r1mega.rollout.asker import FleetAsker
    from r1mega.rollout.served import ServedModel

    folder = config.judge.model
    assert folder is not None, "the recipe demands it"
    spec, tokenizer = read_model(folder), load_tokenizer(folder)
    check_tokenizer(spec, tokenizer, folder)
    longest = min(config.judge.max_model_len, spec.max_positions)
    digest = json.loads((run_dir.path / RUN).read_text())["inputs"]["judge.model"][0]["digest"]
    served = (serve or ServedModel)(
        folder, cluster.rollout, max_model_len=longest, seed=config.seed, log_file=run_dir.logs / "judge_vllm.log",
        interrupt=interrupt,
    )  # fmt: skip
    cache = ReplyCache(run_dir.path / SAID)
    with (
        served as engine,
        FleetAsker(engine, tokenizer, max_model_len=longest, cache=cache, judge=digest) as asker,
    ):
        yield Judging(asker, {"model": str(folder), "digest": digest}, lambda: None)


def _asked_how(config: MakePreferences) -> dict[str, Any]:
    """How the judge is asked, for provenance; what it is told by its digest."""
    if config.label == "preference":
        asked, system = config.pairs, PAIR_FORMS[config.pairs.form][0]
        how: dict[str, Any] = {"votes": asked.votes, "order": asked.order, "form": asked.form}
        how["min_gap"] = asked.min_gap
    else:
        asked, system = config.safety, SAFETY_SYSTEM
        how = {"votes": asked.votes}
    words = told(asked.system, system), asked.prompt
    return {**how, "temperature": asked.temperature, "words": sha256_of("\0".join(words))}
