"""The reward of a reward model: what it reads of an answer, what a score is worth, and an answer without one."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from r1mega.buffers import Float32s, Int32s
from r1mega.data.tokenizer import train_tokenizer
from r1mega.rewards.registry import Rewards
from r1mega.rewards.reward import ToRead, Unread
from r1mega.rewards.reward_model import LearntReward
from r1mega.samples import Completion, Document, FinishReason, Prompt, VerdictStatus
from r1mega.stages.scorers import InWords

QWEN2 = Path(__file__).parents[2] / "configs/tiny/qwen2.json"
SUMMARY = "<think>2 + 2 is 4</think> It is 4.\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(["2 + 2 is 4"] * 9, 320, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tokenizer: Any) -> Path:
    folder = Path(tokenizer.name_or_path)
    shutil.copy(QWEN2, folder / "config.json")
    return folder


class Nobody:
    """A model that is not asked."""

    def score(self, documents: Sequence[Document]) -> list[float]:
        raise AssertionError


def reward(folder: Path, **settings: Any) -> LearntReward:
    return LearntReward.model_validate({"path": folder, "scope": "summary", **settings})


def asked(text: str, prefill: str = "") -> tuple[Prompt, Completion]:
    prompt = Prompt("p", "none", "2 + 2?", "", Int32s([1, 2]), prefill, domain="helpful")
    # The policy's own tokens are no matter: the reward model reads the text.
    return prompt, Completion("p", 0, Int32s([7, 8]), Float32s([0.0, 0.0]), text, FinishReason.STOP, 0, 1)


def read_by(tokenizer: Any, said: str) -> list[int]:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": said}]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)


@pytest.mark.parametrize(
    ("settings", "prefill", "text", "said"),
    [
        ({}, "", SUMMARY, "It is 4."),
        ({}, "<think>", "2 + 2 is 4</think>It is 4.", "It is 4."),
        ({"scope": "response"}, "", SUMMARY, SUMMARY),
        ({"scope": "response"}, "<think>\n", "2 + 2", "<think>\n2 + 2"),
        ({"marks": ["[", "]"]}, "", "[thought] 4", "4"),
    ],
)
def test_it_reads_the_question_and_the_part_of_the_answer_in_its_own_template(
    tokenizer: Any, folder: Path, settings: dict[str, Any], prefill: str, text: str, said: str
):
    (words,) = reward(folder, **settings).documents([asked(text, prefill)])
    assert isinstance(words, ToRead) and words == ToRead("2 + 2?", said)
    (found,) = InWords(Nobody(), folder).documents([words])
    assert found == Document.of_texts([Int32s(read_by(tokenizer, said))])
    assert isinstance(found, Document) and found.scored and found.num_targets == 1


def test_what_it_cannot_read_is_named(tokenizer: Any, folder: Path):
    # 512 positions: the longest that fits, and one token more.
    around = len(read_by(tokenizer, ""))
    fits, too_long = ("<think></think>" + "4" * (num - around) for num in (512, 513))
    words = reward(folder).documents([asked(t) for t in ("<think>on and on", fits, too_long, "", SUMMARY)])
    assert [isinstance(one, ToRead) for one in words] == [False, True, True, False, True]
    assert words[0] == words[3] == Unread("missing", "there is no summary to read")
    found = InWords(Nobody(), folder).documents([one for one in words if isinstance(one, ToRead)])
    assert [isinstance(one, Document) for one in found] == [True, False, True]
    assert isinstance(found[0], Document) and len(found[0].token_ids) == 512
    assert found[1] == Unread("too_long", "513 tokens to read, and the model has 512 positions")
    # An answer without end is read whole where the whole is scored.
    assert reward(folder, scope="response").documents([asked("<think>on and on")]) == [
        ToRead("2 + 2?", "<think>on and on")
    ]


def test_a_score_is_worth_itself_or_its_sigmoid(folder: Path):
    plain, squashed = reward(folder), reward(folder, squash="sigmoid")
    assert [plain.value(x) for x in (-3.5, 0.0, 1e9)] == [-3.5, 0.0, 1e9]
    assert [squashed.value(x) for x in (0.0, math.log(3), -math.log(3))] == pytest.approx([0.5, 0.75, 0.25])
    assert squashed.value(-1e6) == 0.0 and squashed.value(1e6) == 1.0  # no overflow
    assert math.isnan(plain.value(math.nan)) and math.isnan(squashed.value(math.nan))
    assert squashed.value(math.inf) == math.inf  # a model that broke is not worth 1


def test_an_answer_without_a_score_is_worth_what_is_said(folder: Path):
    why = Unread("missing", "nothing there")
    lowest, number = reward(folder), reward(folder, missing=-2)
    assert lowest.unread(why, [0.5, -1.25, 3.0]).value == -1.25
    assert lowest.unread(why, []).value == 0.0
    assert [number.unread(why, values).value for values in ([5.0], [])] == [-2.0, -2.0]
    assert all(r.unread(why, []).status is VerdictStatus.SCORED for r in (lowest, number))
    assert number.unread(why, []).reason == "nothing there"


def test_settings(folder: Path):
    table = {"helpful": {"kind": "reward_model", "path": str(folder), "scope": "summary", "domains": ["helpful"]}}
    made = TypeAdapter(Rewards).validate_python(table)["helpful"]
    assert isinstance(made, LearntReward) and made.missing == "lowest" and made.marks == ("<think>", "</think>")
    for wrong in ({"scope": "answer"}, {"scope": None}, {"missing": "least"}, {"missing": True}, {"squash": "tanh"},
                  {"marks": ["<think>"]}, {"marks": ["<think>", " "]}, {"path": None}):  # fmt: skip
        with pytest.raises(ValidationError):
            reward(folder, **wrong)
    with pytest.raises(ValidationError):
        LearntReward.model_validate({"path": folder})  # nobody guesses what is scored
