"""Questions that no rule can judge: read without a truth, never right or wrong, refused where right answers count."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grpo_run import SETTINGS, SUMS
from own_questions import TRAINED, write

from r1mega.buffers import Float32s, Int32s
from r1mega.data.asked_questions import AskedQuestions
from r1mega.data.question import Question
from r1mega.data.sources.jsonl import JSONL
from r1mega.data.sources.parquet import Parquet
from r1mega.errors import DataError
from r1mega.evaluation.metrics import grade
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.without_truth import asks_without_truth
from r1mega.rewards.accuracy import Accuracy, has_truth
from r1mega.rewards.format import Format
from r1mega.rewards.reward import Answer
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.truths import doubts
from r1mega.samples import Completion, FinishReason, Prompt, VerdictStatus
from r1mega.stages.questions import (
    _refuse_asked_of_another_language,
    _refuse_asked_without_truth,
    evaluated_questions,
)

WISH = {"question": "Write a poem about rain."}


def wishes(path: Path, **settings: Any) -> JSONL:
    return JSONL.model_validate({"path": str(path), "verifier": "none", "domain": "helpful", **settings})


def recipe(**changes: Any) -> GRPO:
    return GRPO.model_validate({**SETTINGS, "model": {"path": "base"}, **changes})


def faults(**changes: Any) -> list[str]:
    return [f for f in recipe(**changes).faults() if "verifier" in f or "rewards." in f]


def test_rows_need_no_truth_and_may_have_one(tmp_path: Path):
    rows = [WISH, {**WISH, "question": "b", "truth": None}, {**WISH, "question": "c", "truth": "a model answer"}]
    found = wishes(write(tmp_path / "own.jsonl", *rows)).read(0)
    assert [q.truth for _, q in found] == ["", "", "a model answer"]
    assert {(q.verifier, q.domain) for _, q in found} == {("none", "helpful")}
    pq.write_table(pa.table({"question": ["a", "b"]}), tmp_path / "own.parquet")
    source = Parquet.model_validate({"path": str(tmp_path / "own.parquet"), "verifier": "none"})
    assert [(q.text, q.truth) for _, q in source.read(0)] == [("a", ""), ("b", "")]


def test_a_column_of_truths_that_is_named_must_be_there(tmp_path: Path):
    file = write(tmp_path / "own.jsonl", WISH)
    with pytest.raises(DataError, match="no column 'answer'"):
        wishes(file, truth="answer").read(0)
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "own.parquet")
    with pytest.raises(DataError, match="no column 'answer'"):
        Parquet.model_validate({"path": str(tmp_path / "own.parquet"), "verifier": "none", "truth": "answer"}).read(0)


def test_a_column_of_verifiers_may_say_none(tmp_path: Path):
    rows = [{**WISH, "by": "none"}, {"question": "1 + 1 =", "truth": "2", "by": "math"}]
    source = JSONL(path=write(tmp_path / "own.jsonl", *rows), verifier_column="by")
    assert [(q.verifier, q.truth) for _, q in source.read(0)] == [("none", ""), ("math", "2")]
    write(tmp_path / "own.jsonl", {**WISH, "by": "math"})
    with pytest.raises(DataError, match="no column 'truth'"):
        source.read(0)


@pytest.mark.parametrize("truth", ["", "a poem"])
def test_no_answer_is_right_or_wrong(truth: str):
    prompt = Prompt("p", "none", "a", truth, Int32s([1]), domain="helpful")
    assert not has_truth(prompt)
    said = f"<think></think><answer>{truth or 3}</answer>"
    verdict = Accuracy().judge(prompt, Answer(said, 5), ())
    assert verdict.status is VerdictStatus.UNSCORABLE
    completion = Completion("p", 0, Int32s([1]), Float32s([0.0]), said, FinishReason.STOP, 0, 1)
    assert grade(prompt, completion).status is VerdictStatus.UNSCORABLE
    # A reward that is for other domains is not asked, and costs the answer nothing.
    rubric = Rubric({"accuracy": Accuracy(domains=("math",)), "format": Format()}, "zero")
    (judged,) = rubric.judge(prompt, [completion], 0)
    assert judged.scored and judged.parts == {"format": 1.0}


def test_their_truths_are_not_asked_whether_they_can_be_right():
    assert doubts([Question("q", "none", "a", "", domain="helpful"), Question("r", "none", "b", "\\frac{")]) == []


def test_accuracy_is_not_asked_of_them(tmp_path: Path):
    table = {"kind": "jsonl", "path": str(write(tmp_path / "wishes.jsonl", WISH)), "verifier": "none"}
    helpful = {**table, "domain": "helpful"}
    sums = {**SUMS, "num": 3}
    (said,) = faults(questions=[sums, helpful])
    assert said == (
        f'rewards.accuracy: is asked of questions.1 ({tmp_path}/wishes.jsonl), which has verifier = "none" and so no '
        'right answers; say which questions it is for: domains = ["math"]'
    )
    assert faults(questions=[sums, helpful], rewards={"accuracy": {"domains": ["math"]}, "format": 0.5}) == []
    assert faults(questions=[helpful], rewards={"format": 1.0}) == []
    # At weight 0 it would be asked as well.
    assert len(faults(questions=[sums, helpful], rewards={"accuracy": 0.0, "format": 1.0})) == 1
    (said,) = faults(questions=[sums, table])
    assert said.endswith('give that table a domain of its own, such as domain = "general", and the reward domains '
                         "without it")  # fmt: skip
    (said,) = faults(questions=[helpful])
    assert said.endswith("take the reward out, or name a verifier for the table")


def test_accuracy_is_not_asked_of_rows_whose_column_says_so():
    q = [Question("a", "none", "a", "", domain="helpful"), Question("b", "math", "b", "1")]
    read = AskedQuestions(q, {"a": "own.jsonl, line 1", "b": "own.jsonl, line 2"}, {}, {})
    with pytest.raises(
        DataError, match=r"rewards.accuracy: is asked of 1 question\(s\) of verifier \"none\""
    ) as error:
        _refuse_asked_without_truth(recipe(), read)
    assert "own.jsonl, line 1" in str(error.value) and "line 2" not in str(error.value)
    _refuse_asked_without_truth(recipe(rewards={"accuracy": {"domains": ["math"]}, "format": 0.5}), read)


def test_constraints_are_not_asked_of_questions_that_have_none():
    """Whose answers would all be unscorable, and every group of them lost."""
    asks = {"constraints": "Write 2 words."}
    q = [Question("a", "none", "a", ""), Question("b", "none", asks["constraints"], "", entry=asks)]
    read = AskedQuestions(q, {"a": "own.jsonl, line 1", "b": "own.jsonl, line 2"}, {}, {})
    with pytest.raises(DataError, match=r"rewards.constraints: is asked of 1 question\(s\) that are no") as error:
        _refuse_asked_of_another_language(recipe(rewards={"constraints": 1.0}), read)
    assert "own.jsonl, line 1" in str(error.value) and "line 2" not in str(error.value)
    for measured in ({"constraints": 0, "format": 1.0}, {"constraints": {"domains": ["general"]}, "format": 1.0}):
        _refuse_asked_of_another_language(recipe(rewards=measured), read)


def test_an_evaluation_refuses_them(tmp_path: Path):
    table = {"kind": "jsonl", "path": str(write(tmp_path / "own.jsonl", WISH)), "verifier": "none"}
    (said,) = faults(evaluation={**SETTINGS["evaluation"], "questions": [table]})
    assert said.startswith("evaluation.questions.0.verifier: an evaluation counts right answers")
    rows = [{**WISH, "by": "none"}, {"question": TRAINED[0], "truth": "1", "by": "math"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = {"kind": "jsonl", "path": table["path"], "verifier_column": "by"}
    with pytest.raises(DataError, match=r"an evaluation counts right answers[^\n]*\n  [^\n]*own.jsonl, line 1$"):
        evaluated_questions(recipe(evaluation={**SETTINGS["evaluation"], "questions": [mixed]}))


def test_a_judge_can_do_with_a_truth_that_no_rule_reads_and_without_one_where_its_prompt_says_so():
    endpoint = {"url": "http://judge/v1", "model": "m"}
    without = Question("a", "none", "a", "", domain="helpful")
    by_truth = recipe(rewards={"judge": {"endpoint": endpoint}}).rewards
    by_itself = recipe(rewards={"judge": {"endpoint": endpoint, "prompt": "{question}{answer}"}}).rewards
    elsewhere = recipe(rewards={"judge": {"endpoint": endpoint, "domains": ["math"]}}).rewards
    assert asks_without_truth(by_truth, without) == "judge"
    assert asks_without_truth(by_truth, Question("a", "none", "a", "a poem", domain="helpful")) is None
    assert asks_without_truth(by_itself, without) is asks_without_truth(elsewhere, without) is None
