"""Pairs and labelled answers as documents: what stands in their fields, and how much each weighs on every rank."""

from pathlib import Path

import pytest

from r1mega.data import token_store
from r1mega.data.epochs import Epochs
from r1mega.data.judged import Judged, JudgedBatches, relative_weights
from r1mega.data.token_store import Stored


def store(folder: Path, *documents: Stored) -> token_store.TokenStore:
    token_store.write(folder, "key", documents, {})
    found = token_store.load(folder)
    assert found is not None
    return found


@pytest.fixture
def pairs(tmp_path: Path) -> token_store.TokenStore:
    return store(
        tmp_path / "pairs",
        Stored([1, 2, 3, 4, 5], [(0, 2), (2, 5)], 2.0),
        Stored([6, 7, 8], [(0, 2), (2, 3)], 0.5),
        Stored([9, 9, 9, 9], [(0, 1), (1, 4)], 1.0),
    )


@pytest.fixture
def answers(tmp_path: Path) -> token_store.TokenStore:
    labels = (1.0, 0.0, 0.0, 0.0)
    return store(tmp_path / "answers", *(Stored([i, i + 1], [(0, 2)], label) for i, label in enumerate(labels)))


def test_a_pair_is_a_document_of_two_texts(pairs):
    document = Judged(pairs, "pairwise", margin_scale=0.5).document(0, 0.25)
    assert document.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert (document.texts, document.scored, document.num_targets) == (((0, 2), (2, 5)), True, 2)
    fields = {name: values.tolist() for name, values in document.fields.items()}
    assert fields == {"weight": [0.25, 0.25], "margin": [1.0, 1.0], "tokens": [2.0, 3.0]}
    assert Judged(pairs, "pairwise").document(0, 1.0).fields["margin"].tolist() == [0.0, 0.0]


def test_an_answer_is_a_document_of_one(answers):
    found = Judged(answers, "pointwise")
    fields = {name: values.tolist() for name, values in found.document(1, 0.5, 0.25).fields.items()}
    assert fields == {"weight": [0.5], "share": [0.25], "safe": [0.0]}
    assert found.labels == [True, False, False, False] and found.tokens(0) == (2,)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_weights_of_all_ranks_sum_to_one(pairs, answers, num_ranks: int):
    for texts, balance in ((Judged(pairs, "pairwise"), "none"), (Judged(answers, "pointwise"), "classes")):
        epochs = Epochs(texts.lengths, 3, seed=0)
        shares = [
            JudgedBatches(texts, epochs, rank=rank, num_ranks=num_ranks, chunk_tokens=8, balance=balance).share(0)
            for rank in range(num_ranks)
        ]
        documents = [document for mine, _ in shares for document in mine]
        assert len(documents) == 3
        assert sum(document.fields["weight"].tolist()[0] for document in documents) == pytest.approx(1.0)
        assert {tokens for _, tokens in shares} == {sum(len(document.token_ids) for document in documents)}


def test_classes_that_weigh_the_same(answers):
    """1 safe of 4: it weighs 4/2 and each of the others 4/6; in a batch of all of them a half and a sixth."""
    assert relative_weights([True, False, False, False]) == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    assert relative_weights([True, True]) == [0.5, 0.5]  # a class that there is none of
    texts = Judged(answers, "pointwise")
    for balance, wanted in (("classes", [1 / 2, 1 / 6, 1 / 6, 1 / 6]), ("none", [1 / 4] * 4)):
        batches = JudgedBatches(
            texts, Epochs(texts.lengths, 4, seed=0), rank=0, num_ranks=1, chunk_tokens=8, balance=balance
        )
        documents, _ = batches.share(0)
        by_label = sorted(documents, key=lambda document: -document.fields["safe"].tolist()[0])
        assert [document.fields["weight"].tolist()[0] for document in by_label] == pytest.approx(wanted)
        assert all(document.fields["share"].tolist() == [0.25] for document in documents)
