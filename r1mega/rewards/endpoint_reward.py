"""A reward that an endpoint gives: asked as an answer arrives, while others are sampled, and never by a worker.

It is the third kind beside rules, which judge in worker processes, and models, which need the trainer's ranks. Who
has the connection hands it in (`rewards.judges`); here stands what is asked, and what the answer itself is at fault
for.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated

from pydantic import Field

from r1mega.config.section import OnResume
from r1mega.data.scope import THOUGHT, Marks, Scope, scoped
from r1mega.endpoint.settings import Endpoint
from r1mega.rewards.asker import Caller
from r1mega.rewards.gathering import gathered
from r1mega.rewards.reward import Answer, Reward, Score, scored
from r1mega.runtime import env
from r1mega.samples import Prompt


class RewardEndpoint(Endpoint):
    """The endpoint of a reward: a rollout waits for it, so it is given up sooner than one of an evaluation."""

    attempts: Annotated[int, OnResume.FREE] = Field(default=5, gt=0)
    """Of one request; then the answer's verdict has failed."""
    timeout_s: Annotated[float, OnResume.FREE] = Field(default=300.0, gt=0)
    """Longest wait for one reply, which comes as a whole."""
    deadline_s: Annotated[float, OnResume.FREE] = Field(default=900.0, gt=0)
    """Longest time for a request with all its attempts and waits."""


class EndpointReward(Reward):
    """A reward that an endpoint gives."""

    endpoint: RewardEndpoint
    """Who is asked. What it has said is kept in the run directory by content, and not asked again on a resume."""
    scope: Scope = "summary"
    """What of an answer is sent: summary, what stands behind its thinking; response, all of it. An answer that has
    none of it, such as one whose thinking never ends, has `floor`."""
    marks: Marks = THOUGHT
    """What opens and closes the thinking."""
    max_characters: int = Field(default=60_000, gt=0)
    """Of what is sent of an answer; a longer one has `floor`, without asking."""
    floor: float = 0.0
    """What an answer is worth that cannot be sent, by its own doing."""

    def ask(self, caller: Caller, prompt: Prompt, answer: Answer) -> Future[Score]:
        """What an answer is worth; at once, the future comes later and never raises."""
        said = scoped(answer.text, self.scope, self.marks)
        if said is None or len(said) > self.max_characters:
            missing = f"there is no {self.scope} in it" if said is None else f"{len(said):,} characters are too many"
            return gathered([], lambda _: scored(self.floor, missing))
        return self.judged(caller, prompt, said)

    def judged(self, caller: Caller, prompt: Prompt, said: str) -> Future[Score]:
        """What `said`, an answer's part in scope, is worth. The future never raises."""
        raise NotImplementedError

    def lacks(self) -> Sequence[str]:
        """What a run cannot ask without and the environment lacks."""
        name = self.endpoint.api_key_env
        if not name or env.secret(name) is not None:
            return ()
        return (f"endpoint.api_key_env: the environment variable {name} is not set; export it where the run starts",)
