"""A rubric's rules in a pool: the verdicts of judging in place, beside sampling, and whose doing a failure is."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from journal_data import PARAMS, request
from pool_rules import Fragile, Longest, Slow
from pool_tasks import broken_control
from recording import stop_signal

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import ConfigError
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judges import Judges, preloaded
from r1mega.rewards.pool import Pool
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.worker import PRELOADED, Limits
from r1mega.rollout.collect import collect, judged
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.runtime.interrupt import Interrupt, StopNow
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus

PROMPT = Prompt("p", "choice", "Which?", "B", Int32s([1]), domain="stem")


def completion(text: str, tokens: int = 2, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion("p", 0, Int32s.repeated(7, tokens), Float32s.repeated(-0.1, tokens), text, finish, 0, 0)


@pytest.fixture(scope="module")
def judges():
    with Pool(4, preloaded=("r1mega.rewards.registry",)) as pool:
        yield Judges(pool)


def test_the_verdicts_are_those_of_judging_in_place(judges: Judges):
    rubric = Rubric({"accuracy": Accuracy(weight=2), "form": Format(), "longest": Longest()}, "zero")
    rng = random.Random(3)
    groups, said = [], ["<think>1</think><answer>B</answer>", "<answer>B</answer>", "B", "<answer>C</answer>"]
    for _ in range(20):
        texts = rng.choices(said, k=4)
        finish = rng.choices([FinishReason.STOP, FinishReason.LENGTH], [4, 1], k=4)
        groups.append([completion(t, rng.randint(1, 9), f) for t, f in zip(texts, finish, strict=True)])
    futures = [judges.judge(rubric, PROMPT, group, step=0) for group in groups]
    found = [future.result() for future in futures]
    assert found == [rubric.judge(PROMPT, group, step=0) for group in groups]
    assert {verdict.reward for verdicts in found for verdict in verdicts} > {0, 2, 3}


def test_an_answer_that_breaks_one_rule_is_judged_by_the_others(judges: Judges):
    judges.take_ended()
    texts = ["spin", "fill", "raise", "nan", "well"]
    said = {text: completion(f"<think>{text}</think><answer>B</answer>") for text in [*texts, "sleep"]}

    def ask(limits: dict[str, Any], *asked: str) -> tuple[Verdict, ...]:
        rubric = Rubric({"fragile": Fragile(**limits), "form": Format(weight=0.5)}, "zero")
        return judges.judge(rubric, PROMPT, [said[text] for text in asked], 0).result()

    spun, filled, broken, no_number, well = ask({"cpu_s": 0.3, "memory_mib": 200}, *texts)
    (slept,) = ask({"wall_s": 0.5}, "sleep")
    hurt = (spun, slept, filled)
    for verdict, words in zip(hurt, ("more than 0.3 s", "more than 0.5 s", "more than 200 MiB"), strict=True):
        assert (verdict.status, verdict.reward, verdict.parts) == ("scored", 0.5, {"fragile": 0.0, "form": 1.0})
        assert verdict.reason.startswith("fragile: ") and words in verdict.reason
    assert broken.status is no_number.status is VerdictStatus.FAILED
    assert broken.reason == "reward fragile of a question of choice raised OSError: no such model server"
    assert no_number.reason == "reward fragile of a question of choice gave nan"
    assert (well.status, well.reward) == ("scored", 1.5)
    assert (judges.take_ended(), judges.take_ended()) == (3, 0)


def test_where_no_worker_can_judge_the_verdict_has_failed():
    with Pool(1, control=broken_control, preloaded=()) as pool:
        verdicts = Judges(pool).judge(Rubric({"form": Format()}, "zero"), PROMPT, [completion("x")], 0).result()
    assert [verdict.status for verdict in verdicts] == [VerdictStatus.FAILED]
    assert verdicts[0].reason.startswith("reward form: no worker does the control task")


def test_a_rule_has_the_limits_of_the_config_then_its_own_then_its_verifiers(monkeypatch: pytest.MonkeyPatch):
    from r1mega.rewards import verifiers

    class Patient(Slow):
        needs = Limits(wall_s=600.0, memory_mib=4096)

    assert Slow().limits(PROMPT) == Limits()
    assert Patient(cpu_s=1.0).limits(PROMPT) == Limits(1.0, 600.0, 4096)
    assert Patient(wall_s=7.0, memory_mib=5).limits(PROMPT) == Limits(5.0, 7.0, 5)
    assert Accuracy().limits(PROMPT) == Limits()
    needy: Any = type("Needy", (), {"needs": Limits(wall_s=900.0)})()
    monkeypatch.setitem(dict_of(verifiers.VERIFIERS), "choice", needy)
    assert Accuracy(cpu_s=2.0).limits(PROMPT) == Limits(2.0, 900.0, 1024)


def dict_of(table: Any) -> dict[str, Any]:
    assert isinstance(table, dict)
    return table


def test_an_unknown_verifier_is_an_error_of_the_config_here_too(judges: Judges):
    prompt = Prompt("p", "chess", "?", "3", Int32s([1]))
    with pytest.raises(ConfigError, match="unknown verifier 'chess'"):
        judges.judge(Rubric({"accuracy": Accuracy()}, "zero"), prompt, [completion("<answer>3</answer>")], 0).result()


def test_workers_import_the_library_of_their_questions_alone():
    assert preloaded(["math", "choice"]) == (*PRELOADED, "r1mega.rewards.registry")
    assert "reasoning_gym.factory" in preloaded(["math", "chain_sum"])


# ---- beside sampling --------------------------------------------------------------------------------------------


class Sampling:
    """An engine that brings one group after the other, each after a while."""

    def __init__(self, seconds: float, order: Sequence[int] | None = None) -> None:
        self._seconds, self._order = seconds, order
        self.took = 0.0

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, *, version: int, on_answer: OnAnswer | None = None
    ) -> list[tuple[Completion, ...]]:
        assert on_answer is not None
        began = time.monotonic()
        for index in self._order or range(len(requests)):
            time.sleep(self._seconds)
            on_answer(index, tuple(completion("x" * (index + 1)) for _ in range(requests[index].n)))
        self.took = time.monotonic() - began
        return []


def rollout(judges: Judges, engine: Sampling, rubric: Rubric, num: int, **how: Any) -> tuple[list[Group], float]:
    started = time.monotonic()
    asked = [request(i, n=4) for i in range(num)]
    groups = collect(engine, asked, PARAMS, version=0, judge=partial(judged, judges, rubric, 0), **how)
    return groups, time.monotonic() - started


def test_a_slow_reward_beside_a_rollout_of_equal_length_costs_less_than_a_tenth(judges: Judges):
    """25 groups of 4 answers, a group every 0.2 s; a reward of 0.2 s an answer keeps 4 workers as long."""
    seconds, num, engine = 0.2, 25, Sampling(0.2)
    rubric = Rubric({"slow": Slow(seconds=seconds)}, "zero")
    rollout(judges, Sampling(0.0), rubric, 2)  # the workers run
    groups, took = rollout(judges, engine, rubric, num)
    assert [group.verdicts[0].reward for group in groups] == [i + 1 for i in range(num)]
    assert all(verdict.scored for group in groups for verdict in group.verdicts)
    assert took < 1.1 * engine.took


def test_groups_are_in_the_order_of_the_requests_and_told_in_that_of_their_answers(judges: Judges):
    order, told = [3, 0, 2, 1], list[tuple[int, float]]()
    groups, _ = rollout(
        judges, Sampling(0.0, order), Rubric({"slow": Slow()}, "zero"), 4,
        on_judged=lambda index, group: told.append((index, group.verdicts[0].reward)),
    )  # fmt: skip
    assert [group.verdicts[0].reward for group in groups] == [1, 2, 3, 4]
    assert told == [(3, 4), (0, 1), (2, 3), (1, 2)]


def test_a_signal_while_verdicts_are_waited_for_ends_the_rollout_and_the_workers_at_once():
    rubric = Rubric({"slow": Slow(seconds=600)}, "zero")
    with Interrupt() as interrupt, Pool(2, preloaded=("r1mega.rewards.registry",)) as warm:
        judges = Judges(warm)
        rollout(judges, Sampling(0.0), Rubric({"slow": Slow()}, "zero"), 1)
        began = time.monotonic()
        threading.Timer(0.3, stop_signal).start()
        with pytest.raises(StopNow):
            rollout(judges, Sampling(0.0), rubric, 3, breakable=interrupt.at_once)
        assert time.monotonic() - began > 0.29  # it was waiting
        warm.abandon()
        assert time.monotonic() - began < 60


def test_what_is_gathered_comes_in_order_whoever_is_first():
    futures: list[Future[int]] = [Future() for _ in range(50)]
    whole = gathered(futures, lambda values: values)
    some = [threading.Thread(target=future.set_result, args=(i,)) for i, future in enumerate(futures)]
    random.Random(0).shuffle(some)
    for thread in some:
        thread.start()
    assert whole.result(timeout=60) == list(range(50))
    broken: Future[int] = Future()
    broken.set_exception(OSError("x"))
    with pytest.raises(OSError, match="x"):
        gathered([broken], sum).result()
