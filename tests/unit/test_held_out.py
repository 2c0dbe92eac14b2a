"""Held out is held out in every stage: what pretraining, SFT's made conversations and RL would train on.

The side of a question is told here by the definition alone: the first 8 bytes of its SHA-256, one in eight.
"""

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from own_questions import own
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r1mega.data.conversations import conversation
from r1mega.data.sources.reasoning_gym import TASKS, Task, questions, questions_in
from r1mega.data.task_conversations import task_conversations
from r1mega.data.tokenised import asks_held_out
from r1mega.errors import DataError
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.recipe.pretrain import Pretrain
from r1mega.stages import pretrain
from r1mega.stages.questions import make_questions

ROOT = Path(__file__).parents[2]
SUMS = Task(name="chain_sum", params={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1})


def is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 8 == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and a tokenizer of one token a byte; no weights."""
    out = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(out)
    fields = json.loads((ROOT / "configs/tiny/qwen2.json").read_text())
    ends = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
    (out / "config.json").write_text(
        json.dumps({**fields, **ends, "vocab_size": 512, "max_position_embeddings": 1024})
    )
    return out


def rl(folder: Path, *overrides: str) -> GRPO:
    settings = ("prompt.template=r1_zero", "batch.chunk_tokens=1024", "sampling.max_new_tokens=64",
                "rollout.num_prompts=4", "questions.0.num=60", "evaluation.questions.0.num=10",
                f"model.path={folder}")  # fmt: skip
    stage = load_recipe(ROOT / "configs/tiny/r1_zero/1_rl.toml", [*settings, *overrides])
    assert isinstance(stage, GRPO)
    return stage


def in_dir(path: Path) -> Any:
    return SimpleNamespace(path=path, tokenizer=path / "tokenizer", questions=path / "questions.json")


def listed(file: Path) -> list[str]:
    return [json.loads(line)["question"] for line in file.read_text().splitlines()]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"task": "chain_sum", "question": t, "truth": "2"}) + "\n" for t in texts))
    return path


def test_pretraining_meets_no_held_out_question(tmp_path: Path):
    overrides = ["data.num_documents=300", "data.vocab_size=320"]
    stage = load_recipe(ROOT / "configs/tiny/r1_zero/0_base.toml", overrides)
    assert isinstance(stage, Pretrain)
    pretrain._corpus(stage, in_dir(tmp_path))
    asked = listed(tmp_path / "trained_on.jsonl")
    assert len(asked) > 200 and not any(map(is_held_out, asked))


def test_made_conversations_meet_no_held_out_question():
    asked = [row["messages"][0]["content"] for row in task_conversations([SUMS], 300, 5)]
    assert len(asked) == 300 and not any(map(is_held_out, asked))


def test_the_wording_of_every_task_is_known():
    """Against the generators, by their defaults and with other numbers."""
    params: dict[str, dict[str, Any]] = {name: {} for name in TASKS}
    params["chain_sum"] = {"min_digits": 1, "max_digits": 6, "max_terms": 9}
    for name, given in params.items():
        for task in (Task(name=name), Task(name=name, params=given)):
            for q in questions([task], 60, 3):
                assert list(questions_in(q.text)) == [q.text]
                spread = q.text.replace(" ", "\n ")
                assert list(questions_in(f"You think first. User: {spread}\nAssistant:")) == [q.text]
    for other in ("What is 2 + 2?", "State the final answer to the following arithmetic problem: x =", ""):
        assert list(questions_in(other)) == []


def test_sft_leaves_out_conversations_that_ask_what_is_held_out():
    made = [q.text for q in questions([SUMS], 300, 123)]
    theirs, mine = [t for t in made if is_held_out(t)], [t for t in made if not is_held_out(t)]

    def asks(*texts: str) -> bool:
        turns = [{"role": r, "content": c} for t in texts for r, c in (("user", t), ("assistant", "4"))]
        return asks_held_out(conversation({"messages": turns}, "line 1"))

    assert len(theirs) > 10 and all(asks(t) and asks(mine[0], f"Please.  {t}\n") for t in theirs)
    assert not any(asks(t) for t in mine)
    elsewhere = next(t for t in (f"Write a poem about {i}." for i in range(99)) if is_held_out(t))
    assert not asks(elsewhere)  # no evaluation asks for it


def test_rl_on_made_questions_meets_no_held_out_question(folder: Path, tmp_path: Path):
    made = make_questions(rl(folder), in_dir(tmp_path))
    assert len(made.train) == 60 and not any(is_held_out(p.question) for p in made.train)
    assert len(made.held_out) == 10 and all(is_held_out(p.question) for p in made.held_out)
    assert listed(tmp_path / "trained_on.jsonl") == [p.question for p in made.train]
    assert listed(tmp_path / "held_out.jsonl") == [p.question for p in made.held_out]


@pytest.mark.parametrize("seed", [999_999, 123])
def test_rl_on_own_questions_meets_none_that_any_evaluation_asks(folder: Path, tmp_path: Path, seed: int):
    """400 questions of the very set that an evaluation with seed 123 draws from, and 20 of the other side."""
    asks = {q.text for q in questions([SUMS], 600, 123)}
    theirs, mine = sorted(filter(is_held_out, asks)), [t for t in sorted(asks) if not is_held_out(t)][:20]
    assert len(theirs) > 40
    file = write(tmp_path / "own.jsonl", theirs + mine)
    made = make_questions(rl(folder, own(file), f"evaluation.seed={seed}"), in_dir(tmp_path))
    assert [p.question for p in made.train] == mine
    counts = made.counts["questions"]["own"]
    assert {what: num for what, num in counts.items() if num} == {"read": len(theirs) + 20, "held_out": len(theirs)}
    assert json.loads((tmp_path / "questions.json").read_text()) == made.counts
    with pytest.raises(DataError, match=rf"0 questions of {len(theirs)} \({len(theirs)} held out\)"):
        make_questions(rl(folder, own(write(file, theirs))), in_dir(tmp_path))


# ---- prompts that are too long ------------------------------------------------------------------------------


def trained(num: int, words: str = "") -> list[str]:
    return [t for t in (f"{i} + 1 ={words}" for i in range(10 * num)) if not is_held_out(t)][:num]


def test_a_question_that_is_too_long_is_named(folder: Path, tmp_path: Path):
    long = trained(2, " value 17;" * 100)
    file = write(tmp_path / "own.jsonl", [*trained(3), long[0], *trained(5)[3:], long[1]])
    config = rl(folder, own(file))
    with pytest.raises(DataError) as error:
        make_questions(config, in_dir(tmp_path))
    head, first, second = str(error.value).splitlines()
    assert "2 prompt(s) longer than 960 tokens, the model's 1024 positions less sampling.max_new_tokens" in head
    assert 'set too_long = "drop"' in head
    # One token a byte: Table 1's text with the question in it.
    template = "".join(_table_1())
    assert first.startswith(f"  {file}, line 4: {len(template.encode()) + len(long[0])} tokens: '0 + 1 = value 17;")
    assert f"{file}, line 7: " in second


def test_long_questions_are_dropped_and_counted(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = write(tmp_path / "own.jsonl", [*trained(4), *trained(1, " value 17;" * 100)])
    with caplog.at_level(logging.INFO):
        made = make_questions(rl(folder, own(file, too_long="drop")), in_dir(tmp_path))
    assert [p.question for p in made.train] == trained(4) and made.counts["questions"]["own"]["too_long"] == 1
    assert "1 prompt(s) longer than 960 tokens dropped" in caplog.text and "own.jsonl, line 5" in caplog.text
    assert "questions, own: 5 read, 1 too long" in caplog.messages
    with pytest.raises(DataError, match=r"4 questions of 5 \(1 too long\) to train on, fewer than .*num_prompts = 5"):
        make_questions(rl(folder, own(file, too_long="drop"), "rollout.num_prompts=5"), in_dir(tmp_path))


def test_the_longest_prompt_may_be_set(folder: Path, tmp_path: Path):
    length = len("".join(_table_1()).encode()) + len("0 + 1 =")
    file = write(tmp_path / "own.jsonl", [*trained(4), trained(5)[4] + "1"])
    for limit, kept in ((length, 4), (length + 1, 5)):
        config = rl(folder, own(file, too_long="drop"), f"max_prompt_tokens={limit}")
        assert len(make_questions(config, in_dir(tmp_path)).train) == kept
    make_questions(rl(folder, own(file), f"max_prompt_tokens={length + 1}"), in_dir(tmp_path))  # all fit
    with pytest.raises(DataError, match=rf"longer than {length} tokens, max_prompt_tokens;"):
        make_questions(rl(folder, own(file), f"max_prompt_tokens={length}"), in_dir(tmp_path))


def _table_1() -> tuple[str, str]:
    """The report's template around the question."""
    from r1mega.data.template import R1_ZERO, render_prompt

    before, _, after = render_prompt(R1_ZERO, "QUESTION").partition("QUESTION")
    return before, after
