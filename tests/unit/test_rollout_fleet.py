"""The client takes exactly what it asked for, and nothing else, from a stand-in for vLLM."""

import ast
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import EOS, VOCAB_SIZE, FakeServer, request, save_tokenizer

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import RolloutError
from r1mega.rollout.engine import OnAnswer, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.samples import Completion, FinishReason


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[FakeServer]:
    save_tokenizer(tmp_path)
    stub = FakeServer(tmp_path)
    yield stub
    stub.shut()


def generate(
    stub: FakeServer,
    *requests: Any,
    version: int = 0,
    on_answer: OnAnswer | None = None,
    **params: Any,
) -> Any:
    servers: Any = [stub]
    drawn = SamplingParams(**{"temperature": 0.7, "max_new_tokens": 5, **params})
    return Fleet(servers).generate(requests, drawn, version=version, on_answer=on_answer)


def test_order_seeds_and_text(stub: FakeServer) -> None:
    arrived: dict[int, tuple[Completion, ...]] = {}
    answers = generate(stub, *(request(i) for i in range(9)), on_answer=arrived.setdefault)
    assert [arrived[i] for i in range(9)] == answers
    for i, group in enumerate(answers):
        assert [c.index for c in group] == [0, 1, 2]
        assert [c.seed for c in group] == [100 * i, 100 * i + 1, 100 * i + 2]
        assert all(c.prompt_id == f"p{i}" and c.weight_version == 0 for c in group)
    last = answers[4][2]
    assert (last.token_ids, last.logp) == (Int32s([4, 3, EOS]), Float32s([-0.5, -1.0, -0.25]))
    assert last.text == "43"  # without the stop token's
    assert last.finish_reason is FinishReason.STOP
    assert answers[5][0].text == "51"  # special tokens stay


def test_what_is_asked_for(stub: FakeServer) -> None:
    generate(stub, request(2), temperature=0.7)
    body = stub.bodies[0]
    assert (body["prompt"], body["n"], body["seed"], body["max_tokens"]) == ([2], 3, 200, 5)
    assert (body["ignore_eos"], body["stop_token_ids"]) == (True, [EOS])  # the server's own ends are not asked
    assert (body["temperature"], body["top_p"], body["top_k"], body["logprobs"]) == (0.7, 1.0, 0, 0)
    assert body["stop"] == []
    generate(stub, request(2), temperature=0.6, max_new_tokens=7, top_p=0.95, stop=("ab", "\n"))
    body = stub.bodies[1]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.6, 7, 0.95)
    # The server's own text has no special tokens, if it is not told to keep them.
    assert (body["stop"], body["stop_token_ids"], body["skip_special_tokens"]) == (["ab", "\n"], [EOS], False)


def ended(*, tokens: list[int], finish: str, reason: Any) -> Callable[[dict[str, Any]], Any]:
    """The second answer is this one."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        logp = {"token_logprobs": [-0.5] * len(tokens)}
        answer["choices"][1] |= {
            "token_ids": tokens,
            "logprobs": logp,
            "finish_reason": finish,
            "stop_reason": reason,
        }
        return answer

    return change


@pytest.mark.parametrize(
    ("tokens", "finish", "reason", "text", "finished"),
    [
        ([11, 3, 12], "stop", "31", "1131", FinishReason.STOP_STRING),  # its last token goes past the string
        ([11, 3, 1], "stop", "31", "1131", FinishReason.STOP_STRING),
        ([5, 11, 3, 1, 1], "stop", "31", "51131", FinishReason.STOP_STRING),  # at the limit: ended, not cut
        ([7, 3, 1], "stop", "70", "731", FinishReason.STOP_STRING),  # not in the text as it is decoded here
        ([11, 3, EOS], "stop", EOS, "113", FinishReason.STOP),
        ([11, 3, EOS], "stop", None, "113", FinishReason.STOP),
        ([7, 7, 7, 7, 7], "length", None, "77777", FinishReason.LENGTH),
    ],
)
def test_an_answer_ends_by_a_token_a_string_or_the_limit(
    tokens: list[int], finish: str, reason: Any, text: str, finished: FinishReason, stub: FakeServer
) -> None:
    stub.change = ended(tokens=tokens, finish=finish, reason=reason)
    ((_, answer, _),) = generate(stub, request(0), stop=("31", "70"))
    assert answer.token_ids.tolist() == tokens and len(answer.logp) == len(tokens)
    assert (answer.text, answer.finish_reason, answer.truncated) == (text, finished, finish == "length")


@pytest.mark.parametrize(("finish", "reason"), [("stop", "99"), ("length", "31")])
def test_a_stop_string_that_was_not_asked_for_is_refused(stub: FakeServer, finish: str, reason: str) -> None:
    stub.change = ended(tokens=[3, 1, 7, 7, 7], finish=finish, reason=reason)
    with pytest.raises(RolloutError, match=rf"ended \({finish}\) with '{reason}', which is none of \['31'\]"):
        generate(stub, request(0), stop=("31",))


def test_nothing_of_a_models_generation_config_changes_the_distribution(stub: FakeServer) -> None:
    """vLLM takes it for whatever a request does not say of these; their neutral values are vLLM's own."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(spec.origin).parent / "entrypoints/openai/completion/protocol.py"
    neutral = next(
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_DEFAULT_SAMPLING_PARAMS" and node.value
    )
    assert {"temperature", "top_p", "repetition_penalty"} < neutral.keys()
    generate(stub, request(2), temperature=1.0)
    assert {name: stub.bodies[0].get(name) for name in neutral} == neutral


def test_ends_of_generation_config_are_asked_for(stub: FakeServer) -> None:
    (stub.model_dir / "config.json").write_text(json.dumps({"eos_token_id": EOS}))
    (stub.model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 5]}))
    generate(stub, request(2))
    assert stub.bodies[0]["stop_token_ids"] == [EOS, 5]


def test_greedy_is_drawn_once(stub: FakeServer) -> None:
    (group,) = generate(stub, request(1), temperature=0.0)
    assert stub.bodies[0]["n"] == 1
    assert len(group) == 3 and len({c.token_ids for c in group}) == 1
    assert [c.seed for c in group] == [100, 101, 102]


def test_nothing_asked(stub: FakeServer) -> None:
    assert generate(stub) == []


def broken(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][1][key] = value
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"choices": a["choices"][:2]}, r"answers \[2\] did not come"),
        (broken("index", 0), "answer 0 came, which is not awaited"),
        (broken("token_ids", [1, 2]), "2 tokens and 3 logprobs"),
        (broken("token_ids", None), "TypeError"),
        (broken("token_ids", [1, 2, VOCAB_SIZE]), "outside 0..15"),
        (broken("token_ids", [1, -2, 3]), "outside 0..15, such as -2"),
        (broken("token_ids", [1, 2, 3.5]), "TypeError"),
        (broken("token_ids", [1, 2, 2**31]), "OverflowError"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, 0.1]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, float("nan")]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, -9999.0]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, None, -1.0]}), "TypeError"),
        (broken("finish_reason", "abort"), "abort"),
        (broken("finish_reason", "length"), "cut at 3 tokens"),
        (lambda a: {"error": "no"}, "it broke off with no"),
        (lambda a: {"error": {"message": "too long", "code": 400}}, "it broke off with .*too long"),
        (lambda a: {"choice": a}, "KeyError"),
        (lambda a: [a], "it answered 200"),
    ],
)
def test_anything_else_is_refused(stub: FakeServer, change: Callable[..., Any], message: str) -> None:
    stub.change = change
    with pytest.raises(RolloutError, match=message) as caught:
        generate(stub, request(0))
    text = str(caught.value)
    assert "3 answers of at most 5 tokens to prompt 'p0'" in text
    assert stub.url in text and "vllm.log" in text


def test_other_weights_are_refused(stub: FakeServer) -> None:
    stub.version = "incomplete push of 4"
    with pytest.raises(RolloutError, match="version 4 of the weights, but it has 'incomplete push of 4'"):
        generate(stub, request(0), version=4)
    assert not stub.bodies


def test_server_errors_and_silence(stub: FakeServer) -> None:
    stub.status = 500
    with pytest.raises(RolloutError, match="it answered 500"):
        generate(stub, request(0))
    stub.shut()
    stub.alive = lambda: False
    with pytest.raises(RolloutError, match=r"no answer .*its process has ended"):
        generate(stub, request(0))
