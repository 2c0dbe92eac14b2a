"""A reward model behind an endpoint: vLLM's routes for sequence classification, or another server's of the same form.

    [rewards.helpful]
    kind = "served_reward_model"
    scope = "summary"
    [rewards.helpful.endpoint]
    url = "http://127.0.0.1:8000"       # vllm serve FOLDER --runner pooling
    model = "helpful_rm"

It is sent the user's turn and the answer's part in scope as the assistant's, which the server puts in the model's own
chat template; no turn to answer is opened behind them. The tokens are then those of `data.preference_text`, by which
our reward models are trained and score on the trainer's ranks, with two exceptions: a template that changes the words
it is given, and answers in which special tokens of that tokenizer are spelled out: to the server they are those
tokens, so that an answer may end its own turn and open another. Where that is to be feared, score on the trainer's
ranks (kind "reward_model"). The score is the raw one, as the model was trained, unless `activation` says otherwise.
"""

from concurrent.futures import Future
from typing import Any, Literal

from pydantic import field_validator

from r1mega.endpoint.replies import read_score, sendable
from r1mega.rewards.asker import Caller, received
from r1mega.rewards.endpoint_reward import EndpointReward, RewardEndpoint
from r1mega.rewards.reward import Score, failed, scored
from r1mega.samples import Prompt


class ServerEndpoint(RewardEndpoint):
    """Where a reward model is served."""

    url: str
    """Of the server, up to what /pooling or /classify follows: "http://127.0.0.1:8000"; vLLM has them beside /v1."""

    @field_validator("url")
    @classmethod
    def _is_no_route(cls, url: str) -> str:
        if url.endswith(("/pooling", "/classify")):
            raise ValueError("is given up to what /pooling or /classify follows; take that off")
        return url


class ServedRewardModel(EndpointReward):
    """The score that a served reward model gives an answer."""

    kind: Literal["served_reward_model"] = "served_reward_model"
    endpoint: ServerEndpoint
    route: Literal["pooling", "classify"] = "pooling"
    """Which of vLLM's routes: both give one number of a model with one label."""
    activation: bool = False
    """Whether the server applies the model's activation (a sigmoid of one label); off: the raw score."""

    def judged(self, caller: Caller, prompt: Prompt, said: str) -> Future[Score]:
        question, answer = (sendable(text) for text in (prompt.question, said))
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "add_generation_prompt": False,
            "use_activation": self.activation,
        }
        return received(caller.call(self.route, body, read_score), scored, failed)
