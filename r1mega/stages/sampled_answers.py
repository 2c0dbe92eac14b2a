"""Answers for preference data: sampled, journalled as they come, and cut to what is judged of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from r1mega.data.pairing import SampledAnswer, usable
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
    """n answers to every question. The engine, where it is ours, starts with the first question that the journal does
    not answer, and has ended when this returns.

    Raises: as `Engine.generate`; what was answered is in the journal.
    """
    found, num = SampledAnswers(), config.answers.per_question
    params = SamplingParams(**dict(config.sampling))
    total = len(asked.prompts) * num
    with (
        open_journal(run_dir, "journal") as journal,
        asked.start(interrupt) as served,
        Bar("answers", total, unit="answer") as bar,
    ):
        bar.say("answers", f"waiting for the first of {total:,}")
        journalled = JournalledEngine(served, journal, policies=run_dir.lineage.policies, replay="journal")
        engine = asked.journalled(journalled)
        for start in range(0, len(asked.prompts), BLOCK):
            prompts = asked.prompts[start : start + BLOCK]
            requests = [Request(p, num, derived_seed(config.seed, "preferences", 0, p.id)) for p in prompts]
            answers = dict[int, list[SampledAnswer]]()
            engine.generate(
                requests, params, version=0, on_answer=_taking(config, prompts, found, answers, bar.advance)
            )
            found.of += [(prompt, answers[place]) for place, prompt in enumerate(prompts)]
            found.replayed += journalled.replayed * (1 if asked.one_by_one else num)
    return found


def _taking(
    config: MakePreferences,
    prompts: Sequence[Prompt],
    found: SampledAnswers,
    answers: dict[int, list[SampledAnswer]],
    advance: Callable[[float], None],
) -> Callable[[int, tuple[Completion, ...]], None]:
    """Takes what can be judged of a question's answers, and lets go of their tokens."""

    def take(place: int, completions: tuple[Completion, ...]) -> None:
        prefill = prompts[place].prefill
        whole = [(SampledAnswer(c.index, c.seed, prefill + c.text, c.num_tokens), c.truncated) for c in completions]
        answers[place], dropped = usable(config.answers, config.scope, whole)
        found.dropped.update(dropped)
        found.sampled += len(completions)
        found.tokens += sum(c.num_tokens for c in completions)
        advance(len(completions))

    return take
