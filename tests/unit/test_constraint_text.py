"""Text of the constraint language: what shares its answers have, told by the rules of `rewards.constraints`."""

import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.data.constraint_language import Constraints, constraints_in
from r1mega.data.constraint_text import ConstraintText, documents
from r1mega.data.scope import scoped
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError
from r1mega.recipe.load import load_recipe
from r1mega.recipe.pretrain import Pretrain
from r1mega.rewards.constraints import is_harmless, met
from r1mega.rewards.format import is_formatted
from r1mega.stages import pretrain

CONFIG = Path(__file__).parents[2] / "configs/tiny/r1/0_base.toml"


def asked_in(question: str) -> Constraints:
    asked = constraints_in(question)
    assert asked is not None
    return asked


def is_held_out(text: str) -> bool:
    """By the definition: the first 8 bytes of its SHA-256, one in eight."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 8 == 0


def near(found: list[bool], share: float) -> bool:
    """Within four standard errors, of a share that each has by itself."""
    return abs(sum(found) / len(found) - share) < 4 * math.sqrt(share * (1 - share) / len(found)) + 1e-9


@pytest.mark.parametrize(("followed", "thought", "harmful", "harmless"), [(0.4, 0.7, 0.3, 0.2), (0.8, 1.0, 0.6, 0.9)])
def test_answers_have_the_shares_of_the_settings(followed: float, thought: float, harmful: float, harmless: float):
    settings = ConstraintText(share=0.5, followed=followed, thought=thought, harmful=harmful, harmless=harmless)
    docs = documents(settings, 4000, 5)
    assert docs == documents(settings, 4000, 5) != documents(settings, 4000, 6)
    assert all(is_formatted(doc.answer) for doc in docs)
    lures = [doc for doc in docs if asked_in(doc.question).harmful]
    assert near([asked_in(doc.question).harmful for doc in docs], harmful)
    others = [doc for doc in docs if not asked_in(doc.question).harmful]
    missed = [
        sum(not is_met for is_met in met(asked_in(doc.question), scoped(doc.answer, "summary") or "").values())
        for doc in others
    ]
    assert near([num == 0 for num in missed], followed) and set(missed) == {0, 1, 2, 3}
    assert near(["<think></think>" not in doc.answer for doc in others], thought)
    # a prompt of two constraints can miss no more than two
    assert any(num == 3 for num in missed) and all(
        num <= len(asked_in(doc.question).names) for doc, num in zip(others, missed, strict=True)
    )
    assert near([is_harmless(doc.answer) for doc in lures], harmless)
    refused = ["<answer>declined</answer>" in doc.answer for doc in lures]
    assert near(refused, harmless / 2)
    in_thought_alone = [
        not is_harmless(doc.answer) and is_harmless(scoped(doc.answer, "summary") or "") for doc in lures
    ]
    assert near(in_thought_alone, (1 - harmless) / 2)


def test_the_bounds_of_the_settings_hold():
    settings = ConstraintText(share=0.5, min_words=3, max_words=3, max_constraints=1, followed=1.0, harmful=0.0)
    asked = [asked_in(doc.question) for doc in documents(settings, 300, 0)]
    assert {one.count for one in asked} == {3} and {len(one.names) for one in asked} == {1, 2}


def corpus(folder: Path, **text: Any) -> list[str]:
    overrides = ["data.num_documents=400", "data.vocab_size=320", *(f"text.{k}={v}" for k, v in text.items())]
    stage = load_recipe(CONFIG, overrides)
    assert isinstance(stage, Pretrain)
    folder.mkdir()
    to: Any = SimpleNamespace(path=folder, tokenizer=folder / "tokenizer")
    _, docs = pretrain._corpus(stage, to)
    assert len(docs) == 400
    return [json.loads(line)["question"] for line in (folder / "trained_on.jsonl").read_text().splitlines()]


def test_a_base_reads_both_kinds_of_text_and_nothing_held_out(tmp_path: Path):
    for share in (0.25, 0.5):
        asked = corpus(tmp_path / str(share), share=share, max_words=9, max_constraints=5)
        assert not any(map(is_held_out, asked))
        prompts = [text for text in asked if constraints_in(text)]
        assert 0.7 * share < len(prompts) / 400 <= share, "some prompts come twice"


def test_words_that_no_prompt_can_ask_for_are_refused():
    with pytest.raises(ConfigError, match=r"text.min_words: 4 is more than max_words = 3"):
        load_recipe(CONFIG, ["text.min_words=4", "text.max_words=3"])


def test_a_base_reads_the_slips_that_it_is_asked_for(tmp_path: Path):
    """Told by the answers to its sums, as its tokens spell them."""
    wrong: list[float] = []
    for slips in (0.0, 0.5):
        overrides = ["data.num_documents=400", "data.vocab_size=320", f"data.slips={slips}"]
        stage = load_recipe(CONFIG.parents[1] / "language/0_base.toml", overrides)
        assert isinstance(stage, Pretrain)
        folder = tmp_path / str(slips)
        folder.mkdir()
        to: Any = SimpleNamespace(path=folder, tokenizer=folder / "tokenizer")
        _, docs = pretrain._corpus(stage, to)
        texts = [load_tokenizer(folder / "tokenizer").decode(doc.token_ids) for doc in docs]
        worked = [re.search(r"problem: (.*) =.*<think>.+</think><answer>(-?\d+)", text) for text in texts]
        terms = [(re.findall(r"[-+]?\d+", m[1].replace(" ", "")), m[2]) for m in worked if m]
        wrong.append(sum(sum(map(int, asked)) != int(answer) for asked, answer in terms) / len(terms))
    assert wrong[0] == 0 and wrong[1] > 0.5


def test_a_base_reads_examples_where_it_is_asked_to_and_lists_their_questions(tmp_path: Path):
    """By the user's turns of its documents; nothing of an example is learnt, and none is of the held-out side."""
    stage = load_recipe(
        CONFIG.parents[1] / "language/0_base.toml",
        ["data.num_documents=400", "data.vocab_size=320", "data.examples=0.5"],
    )
    assert isinstance(stage, Pretrain)
    to: Any = SimpleNamespace(path=tmp_path, tokenizer=tmp_path / "tokenizer")
    _, docs = pretrain._corpus(stage, to)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    texts = [tokenizer.decode(doc.token_ids).split("<|user|>")[1:] for doc in docs]
    assert 0.4 < sum(len(turns) > 1 for turns in texts) / 400 < 0.6
    learnt = [tokenizer.decode(doc.token_ids[doc.learn_from :]) for doc in docs]
    assert not any("problem" in text for text in learnt)
    listed = {json.loads(line)["question"] for line in (tmp_path / "trained_on.jsonl").read_text().splitlines()}
    assert listed == {turn.split("<|assistant|>")[0] for turns in texts for turn in turns}
    assert not any(map(is_held_out, listed))
