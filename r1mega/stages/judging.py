"""Judging where there is no trainer: who judges, so many judgements at once, and when they stop the run."""

import contextlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from r1mega.config.cluster import Cluster
from r1mega.endpoint.asker import EndpointAsker
from r1mega.endpoint.cache import ReplyCache
from r1mega.endpoint.client import Client
from r1mega.endpoint.settings import Endpoint
from r1mega.errors import DataError, EndpointError, EndpointLostError
from r1mega.recipe.judged_by import JudgedBy
from r1mega.rewards.asker import Asker
from r1mega.runtime import env
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.progress import Bar
from r1mega.runtime.provenance import RUN
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import VerdictStatus
from r1mega.stages.answering import Serve

if TYPE_CHECKING:
    from r1mega.rollout.asker import FleetAsker

AT_ONCE = 512
"""Judgements under way: all of them at once would hold every conversation with the judge in memory."""
LATEST = 64
"""Judgements of which a share may fail (`JudgedBy.max_failed`)."""


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
    setting: str = "judge"
    """The table of its settings (`JudgedBy`)."""
    max_failed: float = 1.0
    """Share of the latest judgements that may fail through no fault of the answers."""
    said: str = "judge.jsonl"
    """In the run directory: what it has said, by content."""
    figures: Callable[[], Mapping[str, int]] = dict[str, int]
    """What it was asked since the last call: questions, those answered before, tokens, attempts made again."""
    makes: str = "judgement"
    """What it is asked for, one of them."""


def judge_all(
    candidates: Sequence[C],
    submit: Callable[[C], Future[V]],
    judging: Judging,
    *,
    interrupt: Interrupt,
    title: str,
    unit: str,
) -> list[V]:
    """The verdicts on all candidates, in their order.

    Args:
        submit: has one judged; its future never raises.

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
            ended = ended or (
                judging.over() if latest[-1] else None
            )  # what is under way is waited for: it is paid for
            if ended is None and sum(latest) > judging.max_failed * LATEST:
                raise EndpointLostError(
                    f"{sum(latest)} of the latest {LATEST} {judging.makes}s failed through no fault of the answers, "
                    f"more than {judging.setting}.max_failed = {judging.max_failed:g} lets pass: {verdict.reason}"
                )
            if len(found) == LATEST < len(candidates) and (why := why_none(found.values(), judging.said)):
                raise DataError(
                    f"none of the first {LATEST} {judging.makes}s can be used, and no more is asked; {why}"
                )
    if ended is not None:
        raise ended
    lost = [verdict.reason for verdict in found.values() if verdict.status is VerdictStatus.FAILED]
    if lost and why_none(found.values(), judging.said):
        raise EndpointLostError(
            f"no {judging.makes} can be used, and {len(lost)} of {len(found)} failed through no fault of the "
            f"answers: {lost[0]}"
        )
    return [found[index] for index in range(len(candidates))]


def why_none(verdicts: Collection[AnyVerdict], said: str) -> str:
    """Why no verdict can be used, and how to mend it; "" where one can.

    Args:
        said: see `Judging`.
    """
    reasons = [verdict.reason for verdict in verdicts if verdict.status is not VerdictStatus.SCORED]
    if not reasons or any(verdict.status is VerdictStatus.SCORED for verdict in verdicts):
        return ""
    return (
        f"one of them: {reasons[0]}. What was said is in {said}; the same command with another model, system, "
        "max_tokens or max_characters goes on from the answers, and without that file the same one is asked anew"
    )


@contextmanager
def judged_by(
    judge: JudgedBy,
    cluster: Cluster,
    run_dir: RunDir,
    interrupt: Interrupt,
    serve: Serve | None,
    *,
    seed: int,
    how: Mapping[str, Any],
    setting: str = "judge",
    said: str = "judge.jsonl",
    makes: str = "judgement",
    name: str = "judge",
) -> Iterator[Judging]:
    """The model that the settings name. What it has said is kept in the run directory, and not asked for again.

    Args:
        serve: see `stages.answering.ask_folder`.
        seed: of the run.
        how: it is asked, for provenance.
        setting, said, makes: see `Judging`.
        name: of the model, for people and logs.
    """
    with contextlib.ExitStack() as stack:
        cache = ReplyCache(run_dir.path / said)
        if judge.endpoint is not None:
            asker, who, over = stack.enter_context(_of_endpoint(judge.endpoint, cache))
        else:
            options = {"seed": seed, "log_file": run_dir.logs / f"{name}_vllm.log", "interrupt": interrupt}
            asker, who = stack.enter_context(
                _of_folder(judge, f"{setting}.model", name, cluster, run_dir, cache, serve, options)
            )
            over = _never
        yield Judging(
            asker, {**who, **how}, over, setting, judge.max_failed, said, figures=asker.take_figures, makes=makes
        )


def _never() -> None:
    """Our own server is asked until it fails."""


@contextmanager
def _of_endpoint(
    endpoint: Endpoint, cache: ReplyCache
) -> Iterator[tuple[EndpointAsker, Mapping[str, Any], Callable[[], EndpointError | None]]]:
    """A server that is there already."""
    client = Client(endpoint, env.secret(endpoint.api_key_env) if endpoint.api_key_env else None)
    who = {"endpoint": endpoint.url, "model": endpoint.model, **({"extra": endpoint.extra} if endpoint.extra else {})}
    with EndpointAsker(client, cache) as asker:
        yield asker, who, lambda: client.over


@contextmanager
def _of_folder(
    judge: JudgedBy,
    setting: str,
    name: str,
    cluster: Cluster,
    run_dir: RunDir,
    cache: ReplyCache,
    serve: Serve | None,
    options: Mapping[str, Any],
) -> Iterator[tuple["FleetAsker", Mapping[str, Any]]]:
    """A Hugging Face folder, served here from the first question on that was not answered before."""
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.families.registry import check_tokenizer, read_model
    from r1mega.rollout.asker import FleetAsker
    from r1mega.rollout.command import places_of
    from r1mega.rollout.served import ServedModel
    from r1mega.weights.folder import GiveFolder

    folder = judge.model
    assert folder is not None, "the recipe demands it"
    spec, tokenizer = read_model(folder), load_tokenizer(folder)
    check_tokenizer(spec, tokenizer, folder)
    longest = min(judge.max_model_len, spec.max_positions)
    digest = json.loads((run_dir.path / RUN).read_text())["inputs"][setting][0]["digest"]
    give = GiveFolder(
        address=cluster.address, transport=cluster.transport, verify=cluster.weights.verify,
        breakable=options["interrupt"].at_once,
    )  # fmt: skip
    served = (serve or ServedModel)(
        folder, cluster.rollout, max_model_len=longest, give=give, places=places_of(cluster, trains=False), **options
    )
    with (
        served as engine,
        FleetAsker(engine, tokenizer, max_model_len=longest, cache=cache, judge=digest, name=name) as asker,
    ):
        yield asker, {"model": str(folder), "digest": digest}
