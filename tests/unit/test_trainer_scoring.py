"""A reward that a model gives: from a toy model's values to the advantages."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from r1mega.algos.advantage import samples_from_groups
from r1mega.buffers import Float32s, Int32s
from r1mega.rewards.format import Format
from r1mega.rewards.reward import ModelReward, Score, scored
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, Document, FinishReason, Group, Prompt, Verdict, VerdictStatus
from r1mega.trainer.scoring import scored_by_models

FORMATTED = "<think></think><answer>3</answer>"


class Taste(ModelReward):
    """Reads answers whole; one that says nothing is worth -1 unread."""

    kind: Literal["taste"] = "taste"

    def document(self, prompt: Prompt, completion: Completion) -> Document | Score:
        return super().document(prompt, completion) if completion.text else scored(-1.0, "no summary")


class Sums:
    """A model that gives the sum of a document's targets, each over ten."""

    def __init__(self) -> None:
        self.read: list[list[Document]] = []

    def score(self, documents: Sequence[Document]) -> list[float]:
        self.read.append(list(documents))
        return [sum(d.token_ids[d.learn_from :]) / 10 if 99 not in d.token_ids else math.nan for d in documents]


def group(name: str, rubric: Rubric, *answers: tuple[str, tuple[int, ...]], domain: str = "general") -> Group:
    prompt = Prompt(name, "chain_sum", "4 - 1 =", "3", Int32s([1, 2]), domain=domain)
    completions = tuple(
        Completion(name, i, Int32s(tokens), Float32s.repeated(-0.5, len(tokens)), text,
                   FinishReason.LENGTH if text == "cut" else FinishReason.STOP, 0, i)
        for i, (text, tokens) in enumerate(answers)
    )  # fmt: skip
    return Group(prompt, completions, rubric.judge(prompt, completions, 5))


def run(mesh, groups: list[Group], rubric: Rubric, model: Sums, step: int = 5) -> list[Group]:
    found, _ = scored_by_models(mesh, groups, rubric, {"taste": model}, step=step, chunk_tokens=64)
    assert found is not None
    return found


def test_a_models_scores_enter_the_advantages(mesh):
    rubric, model = (
        Rubric(
            {"format": Format.model_validate({"weight": 0.5}), "taste": Taste.model_validate({"weight": 2.0})}, "zero"
        ),
        Sums(),
    )
    asked = group("p", rubric, (FORMATTED, (5, 5)), ("bare", (20,)), ("", (7,)), ("cut", (9, 9, 9)))
    assert [v.reward for v in asked.verdicts] == [0.5, 0, 0, 0]
    (judged,) = run(mesh, [asked], rubric, model)
    # 0.5 x 1 + 2 x 1; 2 x 2; 2 x -1; a truncated answer is not read.
    assert [v.reward for v in judged.verdicts] == [2.5, 4.0, -2.0, 0.0]
    assert [dict(v.parts) for v in judged.verdicts] == [
        {"format": 1, "taste": 1}, {"format": 0, "taste": 2}, {"format": 0, "taste": -1}, {"format": 0, "taste": 0},
    ]  # fmt: skip
    assert model.read == [[Document(Int32s([1, 2, 5, 5]), 2), Document(Int32s([1, 2, 20]), 2)]]
    samples = samples_from_groups([judged], std="population", constant_groups="keep")
    # Mean 1.125; squares of the deviations 1.375, 2.875, -3.125, -1.125 sum to 21.1875.
    std = math.sqrt(21.1875 / 4)
    assert [s.adv for s in samples] == pytest.approx([1.375 / std, 2.875 / std, -3.125 / std, -1.125 / std])


def test_what_broke_the_model_is_failed_and_changes_nothing_for_the_others(mesh):
    rubric = Rubric({"format": Format(), "taste": Taste()}, "zero")
    answers = [(FORMATTED, (10,)), ("bare", (30,)), ("bare", (99,))]
    (judged,) = run(mesh, [group("p", rubric, *answers)], rubric, Sums())
    assert [v.status for v in judged.verdicts] == ["scored", "scored", "failed"]
    assert judged.verdicts[2].reason == "the model of reward taste gives nan" and not judged.verdicts[2].parts
    (without,) = run(mesh, [group("p", rubric, *answers[:2])], rubric, Sums())

    def advantages(of: Group) -> list[float]:
        return [s.adv for s in samples_from_groups([of], std="population", constant_groups="keep")]

    assert advantages(judged) == advantages(without)


def test_a_model_reads_what_it_is_for_and_no_answer_without_a_verdict(mesh):
    rubric, model = Rubric({"format": Format(), "taste": Taste(domains=("general",), from_step=5)}, "zero"), Sums()
    general, maths = (group(d, rubric, ("a", (10,)), ("b", (20,)), domain=d) for d in ("general", "math"))
    lost = Group(general.prompt, general.completions, (Verdict(VerdictStatus.FAILED), general.verdicts[1]))
    assert run(mesh, [general, maths, lost], rubric, model, step=4) == [general, maths, lost] and not model.read
    first, second, third = run(mesh, [general, maths, lost], rubric, model)
    assert [v.reward for v in first.verdicts] == [1, 2] and second == maths
    assert third.verdicts[0] == lost.verdicts[0] and third.verdicts[1].reward == 2
    assert [len(read) for read in model.read] == [3]
    assert run(mesh, [maths], rubric, model) == [maths] and len(model.read) == 1


def test_without_a_model_in_the_rubric_no_rank_is_asked():
    rubric = Rubric({"format": Format()}, "zero")
    asked = [group("p", rubric, ("a", (1,)))]
    nobody: Any = None
    assert scored_by_models(nobody, asked, rubric, {}, step=5, chunk_tokens=64) == (asked, {})
    assert scored_by_models(nobody, None, rubric, {}, step=5, chunk_tokens=64) == (None, {})
