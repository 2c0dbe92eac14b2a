"""Questions that no rule can judge (verifier "none"): nobody may ask them whether an answer is right."""

import json
from collections.abc import Mapping, Sequence

from r1mega.data.question import NO_VERIFIER, Question
from r1mega.data.sources.source import QuestionSource
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.constraints import ConstraintsMet, asked_in
from r1mega.rewards.judge import Judge
from r1mega.rewards.reward import Reward

EVALUATED = f'an evaluation counts right answers, and of verifier "{NO_VERIFIER}" there are none'


def evaluation_faults(sources: Sequence[QuestionSource]) -> list[str]:
    """Tables of an evaluation that say that no rule can judge their answers."""
    return [
        f"evaluation.questions.{i}.verifier: {EVALUATED}: name who judges them, or leave the table out"
        for i, source in enumerate(sources)
        if NO_VERIFIER in source.verifiers()
    ]


def accuracy_faults(rewards: Mapping[str, Reward], sources: Sequence[QuestionSource]) -> list[str]:
    """Rewards for right answers that would be asked of such tables."""
    without = {i: source for i, source in enumerate(sources) if NO_VERIFIER in source.verifiers()}
    return [
        f'rewards.{name}: is asked of questions.{i} ({source.title}), which has verifier = "{NO_VERIFIER}" and so no '
        f"right answers; {_remedy(sources, set(without))}"
        for name, reward in rewards.items()
        if isinstance(reward, Accuracy)
        for i, source in without.items()
        if _is_for(reward, source.domain)
    ]


def asks_without_truth(rewards: Mapping[str, Reward], question: Question) -> str | None:
    """The name of a reward for right answers that is asked of a question which has none; None where none is."""
    if question.verifier != NO_VERIFIER:
        return None
    asked = (n for n, r in rewards.items() if _needs_truth(r, question) and _is_for(r, question.domain))
    return next(asked, None)


def asks_of_another_language(rewards: Mapping[str, Reward], question: Question) -> str | None:
    """The name of a reward for constraints met, learnt from, that is asked of a question which is no prompt of the
    constraint language, so that no answer to it would ever be scored; None where none is."""
    asked = (
        name
        for name, reward in rewards.items()
        if isinstance(reward, ConstraintsMet) and reward.weight.largest and _is_for(reward, question.domain)
    )
    if (name := next(asked, None)) is None:
        return None
    try:
        asked_in(question.entry)
    except ValueError:
        return name
    return None


def _needs_truth(reward: Reward, question: Question) -> bool:
    """Whether a reward judges by what this question lacks; a judge can do with a truth that no rule reads."""
    judges = isinstance(reward, Judge) and reward.needs_truth and not question.truth.strip()
    return isinstance(reward, Accuracy) or judges


def _is_for(reward: Reward, domain: str) -> bool:
    return not reward.domains or domain in reward.domains


def _remedy(sources: Sequence[QuestionSource], without: set[int]) -> str:
    judged = dict.fromkeys(source.domain for i, source in enumerate(sources) if i not in without)
    left = [domain for domain in judged if all(sources[i].domain != domain for i in without)]
    if left:
        return f"say which questions it is for: domains = {json.dumps(left)}"
    if judged:
        return 'give that table a domain of its own, such as domain = "general", and the reward domains without it'
    return "take the reward out, or name a verifier for the table"
