"""The evaluations of a training run judge by the format that the config asks for."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from one_pool import this_process_pool

from r1mega.buffers import Float32s, Int32s
from r1mega.data.settings import Evaluation
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.samples import Completion, FinishReason, Prompt
from r1mega.stages.held_out import HeldOut

TEXTS = ("<think>1</think><answer>3</answer>", "<think>1</think> So <answer>3</answer>", "<answer>3</answer>", "3")
QUESTIONS = [{"kind": "reasoning_gym", "family": "chain_sum", "num": 1}]


class Says:
    """An engine that gives `TEXTS`, one an answer."""

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, *, version: int, on_answer: OnAnswer | None = None
    ) -> list[tuple[Completion, ...]]:
        (request,) = requests
        ids, logp = Int32s([1]), Float32s([-1.0])
        answers = tuple(
            Completion(request.prompt.id, i, ids, logp, text, FinishReason.STOP, version, request.seed + i)
            for i, text in enumerate(TEXTS)
        )
        assert on_answer is not None
        on_answer(0, answers)
        return [answers]


@pytest.mark.parametrize(("form", "right"), [(None, 1), ("r1_zero", 1), ("r1", 2), ("any", 3)])
def test_the_format_of_the_config_decides_what_is_strictly_right(form: str | None, right: int):
    settings = Evaluation.model_validate(
        {"every_steps": 1, "samples_per_question": len(TEXTS), "questions": QUESTIONS, "format": form}
    )
    lines: list[dict[str, Any]] = []
    held_out = HeldOut(
        Says(),
        [Prompt("p", "chain_sum", "1 + 2 =", "3", Int32s([1]))],
        settings,
        lambda step: SamplingParams(1.0, 8),
        seed=0,
        run_dir=SimpleNamespace(metrics=list),  # type: ignore[arg-type]
        log=lambda kind, step, row: lines.append({"kind": kind, **row}),
        say=lambda *_: None,
        pool=this_process_pool().__enter__(),
        breakable=nullcontext,
    )
    held_out.evaluate(3, greedy=False)
    ((kind, share, lenient),) = ((row["kind"], row["eval/strict"], row["eval/lenient"]) for row in lines)
    assert (kind, share, lenient) == ("eval", right / 4, 1.0)
