"""Kept answers made readable before they are written (report 2.3.1), and verified again as the answers were.

    kept answers ──> parts: thought and answer ──> template, or a model's words ──> filters and rule, in the pool
                                                                                └──> the judge, where no rule judges
    right again: a new row, `from` the row before, which goes to originals.jsonl
    else:        left out, and the row before goes to originals.jsonl; or written as it was (`rewrite.on_failure`)

What a model has said is kept by content in the run directory and not asked for again. Answers without a thought, or
whose thought is left out, have nothing to be made readable: they are written as they are, and counted.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster
from r1mega.data.scope import parted
from r1mega.data.signed_rows import SHA256, Row, sha256_of, signed
from r1mega.recipe.rejection import Rejection
from r1mega.recipe.rewrite import Rewrite
from r1mega.rewards.pool import Pool
from r1mega.rewards.rewriting import Rewritten, rewrite
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason, Prompt, VerdictStatus
from r1mega.stages.answering import Serve
from r1mega.stages.judging import Judging, judge_all, judged_by
from r1mega.stages.rejection_rows import Finish, Kept
from r1mega.stages.sifting import Decision, Outcome, Sifting

log = logging.getLogger(__name__)

ORIGINALS = "originals.jsonl"
"""In the run directory: rows before rewriting, of which no answer stands in rows.jsonl as it was sampled."""
SAID = "rewrites.jsonl"
"""In the run directory: what the model that rewrites has said, by content."""
OUTCOMES: dict[Outcome, Outcome] = {
    "wrong": "rewrite_wrong",
    "failed": "rewrite_failed",
    "unscorable": "rewrite_unscorable",
}
"""What is said of an answer that is verified -> of one that was rewritten; whatever else it falls to is
"rewrite_filtered"."""

Judged = Sequence[tuple[Prompt, list[Decision]]]


@dataclass
class RewriteTally:
    """What became of kept answers."""

    by: str = ""
    who: dict[str, Any] = field(default_factory=dict[str, Any])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    """rewritten, without_thinking, and the outcomes of `stages.sifting` that are of rewritten answers."""
    kept_originals: int = 0
    """Answers written as they were sampled since no rewritten one can be used; their outcomes are counted too."""
    unreadable: int = 0
    """Replies that could not be read."""
    figures: Counter[str] = field(default_factory=Counter[str])
    """What the model was asked: questions, tokens, attempts made again."""

    def say(self) -> None:
        """Say what became of them."""
        told = ", ".join(f"{num:,} {name.replace('_', ' ')}" for name, num in self.outcomes.most_common() if num)
        log.info("rewritten by %s: %s", self.by, told or "nothing to rewrite")
        if self.kept_originals:
            log.warning("%s answers are written as they were sampled", f"{self.kept_originals:,}")
        if self.unreadable:
            log.warning("%s rewritten answers could not be read and were asked for again", f"{self.unreadable:,}")

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "by": self.by,
            "who": self.who,
            "outcomes": dict(self.outcomes),
            "kept_originals": self.kept_originals,
            "unreadable": self.unreadable,
            "asked": dict(self.figures),
        }


@contextmanager
def rewriting(
    config: Rejection,
    settings: Rewrite,
    cluster: Cluster,
    run_dir: RunDir,
    interrupt: Interrupt,
    serve: Serve | None,
    pool: Callable[[], Pool],
    judge: Callable[[Judged], None],
    tally: RewriteTally,
) -> Iterator[Finish]:
    """What is done to kept answers; originals.jsonl is there once the block has ended.

    Args:
        serve: see `stages.answering.ask_folder`.
        pool: makes what filters and rules are asked in.
        judge: has those answers judged that wait for it.
        tally: is counted in.

    The function raises as `judge_all`.
    """
    how = {"words": sha256_of(settings.template)}
    if settings.asks:
        told = "\0".join((settings.system_turn, settings.prompt, settings.template))
        how = {"words": sha256_of(told), "temperature": settings.temperature, "max_tokens": settings.max_tokens}
    with ExitStack() as stack:
        asking: Judging | None = None
        if settings.asks:
            asking = stack.enter_context(
                judged_by(
                    settings, cluster, run_dir, interrupt, serve, seed=config.seed, how=how, setting="rewrite",
                    said=SAID, makes="rewritten answer", name="rewriter",
                )
            )  # fmt: skip
        tally.by, tally.who = settings.by, dict(asking.who if asking else how)
        lengths = {"min_tokens": 0, "max_tokens": 0}  # of the sampled answer; nobody has counted this one's
        again = config.model_copy(update={"filters": config.filters.model_copy(update=lengths)})
        sifting = Sifting(again, stack.enter_context(pool()), settings.format, settings.marks)
        originals = stack.enter_context(files.replacing(run_dir.path / ORIGINALS))
        yield _Rewriting(config, settings, asking, sifting, judge, interrupt, originals, tally)
        if asking is not None:
            tally.figures.update(asking.figures())
        tally.say()


@dataclass
class _Rewriting:
    """A `Finish`."""

    config: Rejection
    settings: Rewrite
    asking: Judging | None
    """None: the template alone."""
    sifting: Sifting
    judge: Callable[[Judged], None]
    interrupt: Interrupt
    originals: TextIO
    tally: RewriteTally

    def __call__(self, kept: Sequence[Kept]) -> list[Row | None]:
        asked = [one for one in kept if one.decision.thinking == "written"]
        self.tally.outcomes["without_thinking"] += len(kept) - len(asked)
        made = dict(zip(map(id, asked), self._verified(asked, self._rewritten(asked)), strict=True))
        written, met = list[Row | None](), set[tuple[str, str]]()
        for one in kept:
            if (found := made.get(id(one))) is None:
                written.append(one.row)
                continue
            text = " ".join(found.text.split())
            if found.outcome is None and (one.prompt.id, text) in met:
                found.drop("rewrite_double")
            met.add((one.prompt.id, text))
            written.append(self._row(one, found))
        return written

    def _rewritten(self, asked: Sequence[Kept]) -> list[Rewritten]:
        """Thought and answer of each, written anew."""
        parts = [self._parts(one.decision.text) for one in asked]
        if self.asking is None:
            return [Rewritten(VerdictStatus.SCORED, *both) for both in parts]
        if not asked:
            return []
        asker = self.asking.asker
        marks = (*self.config.answers.marks, *(self.settings.marks or ()))

        def submit(one: tuple[Kept, tuple[str, str]]) -> Future[Rewritten]:
            kept, (thought, answer) = one
            question = kept.prompt.question
            return rewrite(asker, question, thought, answer, self.settings, seed=self.config.seed, marks=marks)

        found = judge_all(
            list(zip(asked, parts, strict=True)), submit, self.asking, interrupt=self.interrupt, title="rewriting",
            unit="answer",
        )  # fmt: skip
        self.tally.unreadable += sum(one.unreadable for one in found)
        return found

    def _parts(self, text: str) -> tuple[str, str]:
        """What stands in the thinking, and behind it."""
        parts = parted(text, self.config.answers.marks)
        assert parts is not None, "it has a thought, and so a mark that closes it"
        _, thought, behind = parts
        return thought.strip(), behind.removeprefix(self.config.answers.marks[1]).strip()

    def _verified(self, asked: Sequence[Kept], found: Sequence[Rewritten]) -> list[Decision]:
        """Of each what becomes of its rewritten answer: no outcome where it is right, else one of a rewrite."""
        decisions = list[Decision]()
        under_way = list[tuple[int, Future[Decision]]]()
        for place, (kept, one) in enumerate(zip(asked, found, strict=True)):
            before = kept.decision
            decisions.append(Decision(before.index, before.seed, before.tokens, before.text_sha256))
            if one.status is VerdictStatus.SCORED:
                text = self.settings.text(kept.prompt.question, one.thought, one.answer)
                under_way.append((place, self.sifting.decide(_whole(kept.prompt), _completion(before, text))))
            else:
                failed = one.status is VerdictStatus.FAILED
                decisions[place].drop("rewrite_failed" if failed else "rewrite_unreadable", one.reason)
        for place, future in under_way:
            with self.interrupt.at_once():
                decisions[place] = future.result()
        self.judge([(asked[place].prompt, [decisions[place]]) for place, _ in under_way])
        for place, _ in under_way:
            one = decisions[place]
            if one.outcome is not None:
                outcome = OUTCOMES.get(one.outcome, "rewrite_filtered")
                said = (
                    f"{one.outcome}{': ' * bool(one.reason)}{one.reason}"
                    if outcome == "rewrite_filtered"
                    else one.reason
                )
                one.drop(outcome, said)
        return decisions

    def _row(self, kept: Kept, found: Decision) -> Row | None:
        """The row that is written of a kept answer; None where none is, which its decision then says."""
        before = kept.row
        if found.outcome is not None:
            self.tally.outcomes[found.outcome] += 1
            if self.settings.on_failure == "keep_original":
                self.tally.kept_originals += 1
                kept.decision.reason = f"as it was sampled: {found.outcome}{': ' * bool(found.reason)}{found.reason}"
                return before
        self.originals.write(json.dumps(before) + "\n")
        if found.outcome is not None:
            kept.decision.drop(found.outcome, found.reason)
            return None
        self.tally.outcomes["rewritten"] += 1
        user, assistant = before["messages"]
        return signed(
            {
                "messages": [user, {**assistant, "content": found.text}],
                "provenance": {
                    **before["provenance"],
                    "verdict": dict(found.verdict),
                    "filters": dict(found.filters),
                    "thinking": found.thinking,
                    "rewrite": {
                        "by": self.tally.by,
                        **self.tally.who,
                        "of_sha256": sha256_of(assistant["content"]),
                    },
                    "from": [before[SHA256]],
                },
            }
        )


def _whole(prompt: Prompt) -> Prompt:
    """A rewritten answer has no beginning that a template wrote."""
    return replace(prompt, prefill="")


def _completion(before: Decision, text: str) -> Completion:
    """A rewritten answer as if it had been sampled; its tokens are counted as the sampled one's, which nobody has
    counted anew."""
    return Completion(
        "", before.index, Int32s(), Float32s(), text, FinishReason.STOP, 0, before.seed, counted=before.tokens
    )
