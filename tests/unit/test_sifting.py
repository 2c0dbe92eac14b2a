"""What becomes of one sampled answer, with a pool that ends tasks as it is told: whose fault decides."""

from concurrent.futures import Future
from typing import Any

import pytest

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import ConfigError
from r1mega.recipe.rejection import Rejection
from r1mega.rewards.filters import SiftedAnswer
from r1mega.rewards.pool import TaskOutcome
from r1mega.rewards.reward import failed, scored, unscorable
from r1mega.samples import Completion, FinishReason, Prompt
from r1mega.stages.rejection_rows import select
from r1mega.stages.sifting import Decision, Sifting

QUESTIONS = [{"kind": "jsonl", "path": "own.jsonl"}]
PROMPT = Prompt("p", "math", "1 + 1?", "2", Int32s([1]), prefill="<think>", domain="math")
TEXT = "Two.</think> So \\boxed{2}"


class ToldPool:
    """A pool whose tasks end as they are told; it keeps what it was asked."""

    def __init__(self, outcome: TaskOutcome) -> None:
        self.outcome, self.asked = outcome, list[tuple[Any, ...]]()

    def submit(self, function: Any, *arguments: Any, limits: Any) -> "Future[TaskOutcome]":
        self.asked.append(arguments)
        future: Future[TaskOutcome] = Future()
        future.set_result(self.outcome)
        return future


def recipe(**settings: Any) -> Rejection:
    table = {
        "stage": "rejection",
        "questions": QUESTIONS,
        "sampling": {"max_new_tokens": 9},
        "model": {"path": "base"},
    }
    return Rejection.model_validate(table | {"verify": {"format": "r1"}} | settings)


def completion(text: str = TEXT, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion("p", 3, Int32s([5, 6]), Float32s([-1.0, -1.0]), text, finish, 0, 17)


def done(value: Any) -> TaskOutcome:
    return TaskOutcome("done", value)


def decided(outcome: TaskOutcome, prompt: Prompt = PROMPT, text: str = TEXT, **settings: Any) -> Decision:
    pool: Any = ToldPool(outcome)
    return Sifting(recipe(**settings), pool).decide(prompt, completion(text)).result(5)


@pytest.mark.parametrize(
    ("outcome", "expected", "reason"),
    [
        (done(SiftedAnswer({}, None, scored(0.0, "another number"))), "wrong", "another number"),
        (done(SiftedAnswer({}, None, failed("the library broke"))), "failed", "the library broke"),
        (
            TaskOutcome("failed", reason="no worker does the control task"),
            "failed",
            "no worker does the control task",
        ),
        (TaskOutcome("answer", reason="took more than 5 s"), "wrong", "took more than 5 s"),
        (done(SiftedAnswer({"tokens": 2}, "too_short", None)), "too_short", ""),
        (done(SiftedAnswer({}, None, unscorable("no truth"))), "unscorable", "no truth"),
    ],
)
def test_what_is_not_the_answers_fault_is_never_wrong(outcome: TaskOutcome, expected: str, reason: str):
    decision = decided(outcome)
    assert (decision.outcome, decision.reason, decision.text) == (expected, reason, "")
    assert bool(decision.verdict) is (expected == "wrong")


def test_an_error_of_the_config_stops_the_run():
    with pytest.raises(ConfigError, match="unknown"):
        decided(done(ConfigError("unknown verifier")))


def test_a_right_answer_waits_for_nothing_and_one_without_a_truth_for_the_judge():
    right = decided(done(SiftedAnswer({"tokens": 2}, None, scored(1.0))))
    assert (right.outcome, right.verdict, right.filters) == (None, {"by": "rule:math", "value": 1.0}, {"tokens": 2})
    assert (right.index, right.seed, right.tokens, right.thinking) == (3, 17, 2, "written")
    assert right.text == "<think>Two.</think> So \\boxed{2}"
    judge = {"verify": {"format": "r1", "judge": {"model": "judge"}}}
    waits = decided(done(SiftedAnswer({}, None, unscorable("no truth"))), **judge)
    assert (waits.outcome, waits.verdict) == (None, {}) and waits.text
    share = decided(done(SiftedAnswer({}, None, scored(0.75))), verify={"format": "r1", "min_value": 0.75})
    assert share.outcome is None
    assert decided(done(SiftedAnswer({}, None, scored(0.74))), verify={"min_value": 0.75, "format": "r1"}).outcome


def test_what_the_pool_is_asked():
    pool: Any = ToldPool(done(SiftedAnswer({}, None, scored(1.0))))
    german = Prompt("p", "math", "1 + 1?", "2", Int32s([1]), prefill="<think>", target_language="de")
    Sifting(recipe(), pool).decide(german, completion("Zwei.\n</think>\n\nAlso \\boxed{2}")).result(5)
    ((_, _, prompt, answer, thought, repeated),) = pool.asked
    assert (prompt, answer.text) == (german, "<think>Zwei.\n</think>\n\nAlso \\boxed{2}")
    assert (thought, answer.num_tokens, repeated) == ("Zwei.\n", 2, 0.0)


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (TEXT, FinishReason.LENGTH, "truncated"),
        ("Two, <|User|> said.</think> So \\boxed{2}", FinishReason.STOP, "control_token"),
        ("and on and on", FinishReason.STOP, "no_summary"),
        ("Two.</think>  ", FinishReason.STOP, "no_summary"),
        ("Two.</think> a <think> b </think> c", FinishReason.STOP, "unformatted"),
    ],
)
def test_what_has_no_form_is_not_judged(text: str, finish: FinishReason, expected: str):
    pool: Any = ToldPool(done(None))
    decision = Sifting(recipe(), pool).decide(PROMPT, completion(text, finish)).result(5)
    assert decision.outcome == expected and not pool.asked and decision.text_sha256


def test_thinking_is_left_out_of_answers_to_simple_prompts_of_the_named_domains():
    settings: dict[str, Any] = {"thinking": {"domains": ["general"], "simple_words": 2}}

    def of(question: str, domain: str, **more: Any) -> tuple[str, str]:
        prompt = Prompt("p", "none", question, "", Int32s([1]), prefill="<think>", domain=domain)
        right = done(SiftedAnswer({}, None, scored(1.0)))
        found = decided(right, prompt, "\nHm.\n</think>\n\nHi.", **{**settings, **more})
        return found.thinking, found.text

    whole = "<think>\nHm.\n</think>\n\nHi."
    assert of("hello", "general") == ("left_out", "<think>\n\n</think>\n\nHi.")
    assert of("hello there", "general")[0] == "left_out" and of("well hello there", "general") == ("written", whole)
    assert of("你好", "general")[0] == "left_out" and of("你好吗", "general")[0] == "written"
    assert of("hello", "math") == ("written", whole)
    bare = {"thinking": {"domains": ["general"], "empty": "<think></think> "}}
    assert of("hello", "general", **bare) == ("left_out", "<think></think> Hi.")


# ---- which are kept ------------------------------------------------------------------------------------------------


def good(index: int, text: str) -> Decision:
    return Decision(index, index, 2, "sha", verdict={"by": "rule:math", "value": 1.0}, text=text)


def test_equal_answers_are_kept_once_and_the_rest_are_drawn():
    def outcomes(seed: int, question: str = "p") -> dict[int, str | None]:
        some = [good(i, f"answer {i % 4}" + " " * (i > 3)) for i in reversed(range(6))]
        some.append(Decision(6, 6, 2, "sha").drop("wrong"))
        kept = select(some, 2, seed, question)
        assert [one.index for one in kept] == sorted(one.index for one in some if one.outcome == "kept")
        return {one.index: one.outcome for one in some}

    drawn = [outcomes(seed) for seed in range(20)]
    for found in drawn:
        assert found[4] == found[5] == "double" and found[6] == "wrong"
        assert sorted(str(found[i]) for i in range(4)) == ["enough", "enough", "kept", "kept"]
    firsts = sum(found[0] == "kept" for found in drawn)
    assert 3 <= firsts <= 17 and outcomes(3) == drawn[3] and len({str(found) for found in drawn}) > 3
    assert len({str(outcomes(0, str(i))) for i in range(8)}) > 1  # another draw for every question


def test_without_a_limit_all_that_differ_are_kept():
    some = [good(i, f"answer {i}") for i in range(3)]
    assert select(some, None, 0, "p") == some and {one.outcome for one in some} == {"kept"}
