"""Answers of a finished model, sampled in blocks and journalled as they come; for preference data cut to what is
judged of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from r1mega.data.pairing import SampledAnswer, usable
from r1mega.recipe.answering import Answering
from r1mega.recipe.preferences import MakePreferences
from r1mega.rollout.engine import Request, SamplingParams, derived_seed
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.progress import Bar
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, Prompt
from r1mega.stages.answering import Asked

BLOCK = 2048
"""Questions asked at once: what an engine returns holds every token, 8 bytes each, and 66,000 questions' would be
tens of gigabytes."""

Take = Callable[[int, tuple[Completion, ...]], None]
"""Takes a question's place and its answers."""


@dataclass
class SampledAnswers:
    """What can be judged, question by question in their order."""

    of: list[tuple[Prompt, list[SampledAnswer]]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Answers that cannot be judged, by why (`data.pairing.usable`)."""
    sampled: int = 0
    """All answers."""
    tokens: int = 0
    """Of them."""
    replayed: int = 0
    """Answers that the journal had."""


def sample(config: MakePreferences, asked: Asked, run_dir: RunDir, interrupt: Interrupt) -> SampledAnswers:
    """n answers to every question. Raises as `sample_in_blocks`."""
    found, num = SampledAnswers(), config.answers.per_question
    answers = dict[int, list[SampledAnswer]]()

    def end(block: range) -> None:
        found.of += [(asked.prompts[place], answers.pop(place)) for place in block]

    take = _taking(config, asked.prompts, found, answers)
    found.replayed = sample_in_blocks(
        config, asked, run_dir, interrupt, num=num, what="preferences", take=take, end=end
    )
    return found


def sample_in_blocks(
    config: Answering,
    asked: Asked,
    run_dir: RunDir,
    interrupt: Interrupt,
    *,
    num: int,
    what: str,
    take: Take,
    end: Callable[[range], None],
) -> int:
    """Sample `num` answers to every question, block by block; how many of them the journal had. The engine, where it
    is ours, starts with the first question that the journal does not answer, and has ended when this returns.

    Args:
        what: these answers are for: the seeds follow from the run's, from this and from the question.
        take: called with a question's place among the prompts and its answers, as they come, in whichever thread
            brings them.
        end: called with the places of a block once `take` has had all of its answers, in their order.

    Raises: as `Engine.generate`, and what `take` and `end` raise; what was answered is in the journal.
    """
    params = SamplingParams(**dict(config.sampling))
    total, replayed = len(asked.prompts) * num, 0
    with (
        open_journal(run_dir, "journal") as journal,
        asked.start(interrupt) as served,
        Bar("answers", total, unit="answer") as bar,
    ):
        bar.say("answers", f"waiting for the first of {total:,}")
        journalled = JournalledEngine(served, journal, policies=run_dir.lineage.policies, replay="journal")
        engine = asked.journalled(journalled)
        for start in range(0, len(asked.prompts), BLOCK):
            block = range(start, min(start + BLOCK, len(asked.prompts)))
            prompts = [asked.prompts[place] for place in block]
            requests = [Request(p, num, derived_seed(config.seed, what, 0, p.id)) for p in prompts]

            def on_answer(place: int, completions: tuple[Completion, ...], start: int = start) -> None:
                take(start + place, completions)
                bar.advance(len(completions))

            engine.generate(requests, params, version=0, on_answer=on_answer)
            replayed += journalled.replayed * (1 if asked.one_by_one else num)
            end(block)
    return replayed


def _taking(
    config: MakePreferences,
    prompts: Sequence[Prompt],
    found: SampledAnswers,
    answers: dict[int, list[SampledAnswer]],
) -> Take:
    """Takes what can be judged of a question's answers, and lets go of their tokens."""

    def take(place: int, completions: tuple[Completion, ...]) -> None:
        prefill = prompts[place].prefill
        whole = [(SampledAnswer(c.index, c.seed, prefill + c.text, c.num_tokens), c.truncated) for c in completions]
        answers[place], dropped = usable(config.answers, config.scope, whole)
        found.dropped.update(dropped)
        found.sampled += len(completions)
        found.tokens += sum(c.num_tokens for c in completions)

    return take
