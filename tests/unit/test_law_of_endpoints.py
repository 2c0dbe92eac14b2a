"""The law of verdicts, of rewards that an endpoint gives: an answer without a judgement changes nothing for others.

What there is of them is discovered: a new kind has to be entered here, and obey.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_pool import this_process_pool

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import EndpointLostError
from r1mega.rewards.callers import Callers
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.format import Format
from r1mega.rewards.judge import Judge
from r1mega.rewards.judges import Judges
from r1mega.rewards.registry import MEMBERS
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.served_reward_model import ServedRewardModel
from r1mega.samples import Completion, FinishReason, Prompt, Verdict


class Moody:
    """Says of an answer what it is told to: a score, nothing that can be read, or nothing at all."""

    def __init__(self, moods: Mapping[str, Any]) -> None:
        self._moods = moods

    def _said(self, sent: str) -> Future[Any]:
        said: Future[Any] = Future()
        mood = next(mood for answer, mood in self._moods.items() if answer in sent)
        if mood == "lost":
            said.set_exception(EndpointLostError("http://judge: no answer"))
        else:
            said.set_result(mood)
        return said

    def ask(self, messages: Any, *, seed: int, temperature: float, max_tokens: int) -> Future[str]:
        return self._said(messages[-1]["content"])

    def call(self, route: str, body: Any, read: Any) -> Future[Any]:
        return self._said(body["messages"][-1]["content"])

    def count_unreadable(self) -> None: ...


SAYS: dict[type[EndpointReward], tuple[Any, ...]] = {
    Judge: ("[[right]]", "[[wrong]]", "Who knows?", "lost"), ServedRewardModel: (0.5, -2.0, "lost"),
}  # fmt: skip
"""What each kind's endpoint may do; the words and numbers are what survives."""
SURVIVES = {"[[right]]": 1.0, "[[wrong]]": 0.0, 0.5: 0.5, -2.0: -2.0}


def test_every_kind_of_them_is_held_to_the_law():
    assert {member for member in MEMBERS if issubclass(member, EndpointReward)} == set(SAYS)


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", SAYS)
@given(data=st.data())
def test_an_answer_that_no_endpoint_judges_leaves_the_others_as_they_are(kind: Any, data: st.DataObject):
    moods = data.draw(st.lists(st.sampled_from(SAYS[kind]), min_size=2, max_size=5))
    said = {f"number {i}": mood for i, mood in enumerate(moods)}
    rewards = {"asked": kind.model_validate({"endpoint": {"url": "http://judge", "model": "m"}}), "form": Format()}
    rubric, prompt = Rubric(rewards, "zero"), Prompt("p", "none", "q", "the truth", Int32s([1]))

    def judged(answers: Sequence[str]) -> list[Verdict]:
        completions = [Completion("p", 0, Int32s([1]), Float32s([0.0]), a, FinishReason.STOP, 0, 0) for a in answers]
        callers: Any = Callers(asked=Moody(said))  # pyright: ignore[reportArgumentType]
        with this_process_pool() as pool:
            return list(Judges(pool, callers).judge(rubric, prompt, completions, 0).result(60))

    found = judged(list(said))
    assert [v.reward for v in found if v.scored] == [SURVIVES[mood] for mood in moods if mood in SURVIVES]
    assert [v.scored for v in found] == [mood in SURVIVES for mood in moods]
    assert not any(v.parts or v.reward for v in found if not v.scored)
    assert [v for v in found if v.scored] == judged([a for a, mood in said.items() if mood in SURVIVES])
