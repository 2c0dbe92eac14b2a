"""A reward model that is served: vLLM's routes for sequence classification."""

from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer
from judging import QUICK, RIGHT, server, verdicts

from r1mega.rewards.reward import Reward
from r1mega.rewards.served_reward_model import ServedRewardModel

__all__ = ["server"]  # a fixture


def served(server: EndpointServer, **settings: Any) -> ServedRewardModel:
    endpoint = {"url": server.url.removesuffix("/v1"), "model": "rm", **QUICK}
    return ServedRewardModel.model_validate({"endpoint": endpoint, **settings})


def scores(server: EndpointServer, value: Any, route: str) -> None:
    def answer(body: dict[str, Any], path: str) -> dict[str, Any]:
        assert path == f"/{route}"
        found = {"data": [value]} if route == "pooling" else {"probs": [value], "label": "LABEL_0", "num_classes": 1}
        return {"object": "list", "data": [{"index": 0, **found}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}

    server.answer = answer  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("route", ["pooling", "classify"])
def test_a_served_reward_models_score(route: str, server: EndpointServer, tmp_path: Path):
    scores(server, -1.25, route)
    rewards: dict[str, Reward] = {"helpful": served(server, route=route, weight=2.0)}
    (found,) = verdicts(rewards, [RIGHT], folder=tmp_path)
    assert (found.reward, found.parts) == (-2.5, {"helpful": -1.25})
    (body,) = server.bodies
    assert body == {
        "path": f"/{route}", "model": "rm", "add_generation_prompt": False, "use_activation": False,
        "messages": [
            {"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "Mary Shelley"},
        ],
    }  # fmt: skip
    scores(server, 99.0, route)
    assert verdicts(rewards, [RIGHT], folder=tmp_path) == (found,) and len(server.bodies) == 1
    whole = served(server, route=route, scope="response", activation=True)
    (found,) = verdicts({"harmless": whole}, [RIGHT], folder=tmp_path)
    assert found.reward == 99.0 and server.bodies[1]["messages"][1]["content"] == RIGHT
    assert server.bodies[1]["use_activation"] is True
    verdicts({"harmless": whole}, ["half \ud83d"])
    assert server.bodies[2]["messages"][1]["content"] == "half ?"


@pytest.mark.parametrize("value", [float("nan"), None, "0.5", [0.5, 0.5]])
def test_what_is_no_score_has_failed(value: Any, server: EndpointServer):
    scores(server, value, "classify")
    (found,) = verdicts({"helpful": served(server, route="classify")}, [RIGHT])
    assert found.status == "failed" and len(server.bodies) == 3
    assert "sent something else than answers" in found.reason


def test_several_numbers_are_no_score(server: EndpointServer):
    server.answer = lambda body, path: {"data": [{"index": 0, "data": [0.1, 0.9]}]}  # pyright: ignore
    (found,) = verdicts({"helpful": served(server)}, [RIGHT])
    assert found.status == "failed" and "2 numbers, where a reward model has one" in found.reason


def test_settings():
    with pytest.raises(ValueError, match=r"/pooling or /classify follows; take that off"):
        ServedRewardModel.model_validate({"endpoint": {"url": "http://h/pooling", "model": "m"}})
