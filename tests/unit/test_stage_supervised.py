"""Pretraining and SFT in this process, on a policy that is exact and writes down what it is given.

The model of `recording` makes a step's loss, gradient and new weights a matter of counting tokens: what stands in
metrics.jsonl is compared with that, the learning rates being worked out by hand.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recording
import torch
from recording import CONFIG, RecordingPolicy, stop_signal

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster
from r1mega.data.batches import Batches
from r1mega.data.epochs import Epochs
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.sft import SFT
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document

CLUSTER = Cluster(device="cpu")
TURNS = [(f"{'a' * (i % 5)} {i} + 1", f"{i + 1}{' well' * (i % 4)}") for i in range(12)]
COMMON = {"batch": {"chunk_tokens": 128}, "save": {"every_steps": 100}, "wandb": {"mode": "disabled"}}
LINEAR = {"lr": 1.0, "schedule": "linear", "min_lr_ratio": 0.1, "warmup_steps": 2}
LRS = [0.5, 0.85, 0.7, 0.55, 0.4, 0.25]
"""Of LINEAR in six steps: 0.1 + 0.9 x what is left, in sixths, times 1/2 and 2/2 in the warm-up."""


@pytest.fixture(scope="module")
def base(mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{asked}<|assistant|>{answer}" for asked, answer in TURNS]
    return recording.write_base(tmp_path_factory.mktemp("base") / "model", mesh, texts)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in TURNS))
    return file


def run(stage: Any, config: Any, folder: Path, *, resume: bool = False, **policy: Any) -> RecordingPolicy:
    assert config.faults() == []
    built: list[RecordingPolicy] = []

    def build(*arguments: Any, **settings: Any) -> RecordingPolicy:
        built.append(RecordingPolicy(*arguments, **settings, **policy))
        return built[-1]

    run_dir = RunDir(folder, config, CLUSTER, resume=resume)
    try:
        with recording.recorded_saves():
            stage.run(config, CLUSTER, run_dir, build=build)
    finally:
        run_dir.close()
    return built[0]


def sft(base: Path, conversations: Path, **changes: Any) -> SFT:
    settings = {"stage": "sft", "model": {"path": str(base)}, "num_epochs": 2, "batch_size": 4, "optimizer": LINEAR}
    data = {"files": [str(conversations)], "max_tokens": 96}
    return SFT.model_validate({**COMMON, **settings, "data": data, **changes})


def rows(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found if row["kind"] == kind]


def updates(policy: RecordingPolicy) -> list[tuple[Document, ...]]:
    return [call.documents for call in policy.calls if call.verb == "forward_backward"]


def targets(document: Document) -> list[int]:
    return [i for start, stop in document.target_spans for i in document.token_ids[start:stop]]


def log_p(theta: Sequence[float]) -> list[float]:
    log_sum = math.log(sum(map(math.exp, theta)))
    return [x - log_sum for x in theta]


def check_by_counting(
    policy: RecordingPolicy, theta: list[float], lrs: list[float], found: list[dict[str, Any]], by_document: bool
) -> list[list[float]]:
    """Every line of a run that began with `theta`; the weights before each step, and the last ones.

    The gradient of the mean of -log p(t) over targets is p(v) less v's share of the targets.
    """
    passed = [theta]
    assert [row["step"] for row in found] == list(range(1, len(lrs) + 1))
    for row, documents, lr in zip(found, updates(policy), lrs, strict=True):
        now, shares = log_p(theta), Counter[int]()
        num_targets = sum(len(targets(d)) for d in documents)
        for document in documents:
            learnt = targets(document)
            weight = 1 / (len(documents) * len(learnt)) if by_document else 1 / num_targets
            for token in learnt:
                shares[token] += weight  # type: ignore[assignment]
        gradient = [math.exp(x) - shares[v] for v, x in enumerate(now)]
        expected = {
            "loss": -sum(share * now[v] for v, share in shares.items()),
            "grad_norm": math.sqrt(sum(g * g for g in gradient)),
            "tokens": sum(len(d.token_ids) for d in documents),
            "lr": lr,
            "entropy": -sum(math.exp(x) * x for x in now),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        theta = [x - lr * g for x, g in zip(theta, gradient, strict=True)]
        passed.append(theta)
    return passed


def sines() -> list[float]:
    return [math.sin(v) for v in range(CONFIG["vocab_size"])]


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_the_lines_of_sft_are_what_counting_gives(reduction: str, base: Path, conversations: Path, tmp_path: Path):
    from r1mega.stages import sft as stage

    policy = run(stage, sft(base, conversations, reduction=reduction), tmp_path / "run")
    check_by_counting(policy, sines(), LRS, rows(tmp_path / "run"), by_document=reduction == "sequence_mean")
    assert len({len(targets(d)) for documents in updates(policy) for d in documents}) > 1  # or both would be one mean
    # Three steps an epoch, in which every conversation comes once.
    learnt = [[tuple(d.token_ids) for documents in updates(policy)[i : i + 3] for d in documents] for i in (0, 3)]
    assert sorted(learnt[0]) == sorted(learnt[1]) != learnt[0] != learnt[1]
    assert len(set(learnt[0])) == 12


def test_a_cosine_a_constant_and_a_bounded_run(base: Path, conversations: Path, tmp_path: Path):
    from r1mega.stages import sft as stage

    schedules = {
        "cosine": ({"lr": 1.0, "schedule": "cosine"}, {}, [1.0, 0.5 + 3**0.5 / 4, 0.75, 0.5, 0.25, 0.5 - 3**0.5 / 4]),
        "constant": ({"lr": 1.0, "warmup_steps": 3}, {}, [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
        "bounded": ({"lr": 1.0, "schedule": "linear"}, {"max_steps": 4}, [1.0, 0.75, 0.5, 0.25]),
    }
    for name, (optimizer, changes, lrs) in schedules.items():
        policy = run(stage, sft(base, conversations, optimizer=optimizer, **changes), tmp_path / name)
        check_by_counting(policy, sines(), lrs, rows(tmp_path / name), by_document=False)


def test_a_run_bounded_by_time_decays_with_it(base: Path, conversations: Path, tmp_path: Path, monkeypatch):
    from r1mega.stages import sft as stage

    class TwoSeconds(Stopwatch):
        def __exit__(self, *error: object) -> None:
            self.seconds = 2.0

    monkeypatch.setattr(stage, "Stopwatch", TwoSeconds)
    optimizer = {"lr": 1.0, "schedule": "linear", "min_lr_ratio": 0.2}
    policy = run(stage, sft(base, conversations, optimizer=optimizer, max_seconds=8.0), tmp_path / "run")
    # Four of six steps, at 0.2 + 0.8 x what is left of the time.
    check_by_counting(policy, sines(), [1.0, 0.8, 0.6, 0.4], rows(tmp_path / "run"), by_document=False)


def test_a_resumed_run_bounded_by_time_has_the_rest_of_it(
    base: Path, conversations: Path, tmp_path: Path, monkeypatch
):
    from r1mega.stages import sft as stage

    class TwoSeconds(Stopwatch):
        def __exit__(self, *error: object) -> None:
            self.seconds = 2.0

    monkeypatch.setattr(stage, "Stopwatch", TwoSeconds)
    config = sft(base, conversations, optimizer={"lr": 1.0, "schedule": "linear"}, max_seconds=8.0)
    with pytest.raises(Interrupted):
        run(stage, config, tmp_path / "run", after_step=lambda taken: stop_signal() if taken == 2 else None)
    run(stage, config, tmp_path / "run", resume=True)
    # Two steps of two seconds before, two after: of eight, 8, 6, 4 and 2 were left.
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_resumed_run_takes_up_schedule_and_data(base: Path, conversations: Path, tmp_path: Path):
    from r1mega.stages import sft as stage

    config = sft(base, conversations)
    run(stage, config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(stage, config, tmp_path / "run", after_step=lambda taken: stop_signal() if taken == 2 else None)
    assert len(rows(tmp_path / "run")) == 2
    run(stage, config, tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_validation_is_the_mean_over_targets_and_falls_due(base: Path, conversations: Path, tmp_path: Path):
    from r1mega.stages import sft as stage

    own = tmp_path / "own.jsonl"
    turns = [{"prompt": f"of {i}", "response": "7 well" * (1 + i % 4)} for i in range(70)]
    own.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    config = sft(base, conversations, validation={"files": [str(own)], "every_steps": 4})
    policy = run(stage, config, tmp_path / "run")
    thetas = check_by_counting(policy, sines(), LRS, rows(tmp_path / "run"), by_document=False)
    scored = [call.documents for call in policy.calls if call.verb == "logprobs"]
    assert [len(documents) for documents in scored] == [64, 6] * 3  # in passes of 64
    found = rows(tmp_path / "run", "validation")
    assert [row["step"] for row in found] == [0, 4, 6]
    for row, passes in zip(found, zip(scored[::2], scored[1::2], strict=True), strict=True):
        now, learnt = log_p(thetas[row["step"]]), [t for documents in passes for d in documents for t in targets(d)]
        assert row["validation/loss"] == pytest.approx(-sum(now[t] for t in learnt) / len(learnt), rel=1e-5)


def test_every_document_is_validated_once_however_many_there_are(monkeypatch):
    """Two at a time: five documents of 1 to 5 targets, document i's being of log-probability -i each."""
    from r1mega.trainer import validation

    monkeypatch.setattr(validation, "VALIDATION_DOCUMENTS", 2)
    scored: list[list[int]] = []

    class Texts:
        lengths = num_targets = (2, 3, 4, 5, 6)

        def document(self, i: int, weight: float) -> Document:
            return Document(Int32s.repeated(i, i + 2))

    def logprobs(documents: Sequence[Document], *, temperature: float) -> list[torch.Tensor]:
        assert temperature == 1.0
        scored.append([d.token_ids[0] for d in documents])
        return [torch.full((d.num_targets,), -float(d.token_ids[0])) for d in documents]

    mesh = SimpleNamespace(layout=SimpleNamespace(dp=1), data_rank=0, gather_over_data=lambda mine: [mine])
    policy: Any = SimpleNamespace(mesh=mesh, logprobs=logprobs)
    loss = validation.mean_loss(policy, Texts(), 16)
    assert scored == [[0, 1], [2, 3], [4]]
    assert loss == (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4 + 4 * 5) / 15


def test_the_policy_of_sft_is_built_as_the_config_says(base: Path, conversations: Path, tmp_path: Path):
    from r1mega.stages import sft as stage

    config = sft(base, conversations, max_steps=3, mtp_loss_weight=0.04, seed=3)
    built = run(stage, config, tmp_path / "frozen").settings
    assert (built["mtp"], built["mtp_loss_weight"], built["expert_bias_rate"]) == ("joint", 0.04, 0.0)
    assert (built["optimizer"], built["batch"], built["seed"]) == (config.optimizer, config.batch, 3)
    moving = {"mtp": "detached", "expert_bias": "update", "expert_bias_rate": 0.02}
    built = run(stage, sft(base, conversations, max_steps=3, **moving), tmp_path / "moving").settings
    assert (built["mtp"], built["expert_bias_rate"]) == ("detached", 0.02)


def test_the_means_are_over_the_documents_of_all_ranks():
    """Two data-parallel ranks: what each document's targets weigh does not depend on the rank that has it."""
    sizes = {0: 12, 1: 3, 2: 7, 3: 2, 4: 9, 5: 4}

    class Texts:
        lengths = tuple(size + 1 for size in sizes.values())
        num_targets = tuple(sizes.values())

        def document(self, i: int, weight: float) -> Document:
            return Document(Int32s([i, *range(sizes[i])]), fields={"weight": Float32s.repeated(weight, sizes[i])})

    for reduction, weight in (("token_mean", lambda i: 1 / 37), ("sequence_mean", lambda i: 1 / (6 * sizes[i]))):
        epochs, found = Epochs(Texts.lengths, 6, seed=0), {}
        for rank in range(2):
            batches = Batches(Texts(), epochs, rank=rank, num_ranks=2, chunk_tokens=16, reduction=reduction)  # type: ignore[arg-type]
            documents, tokens = batches.share(0)
            assert 0 < len(documents) < 6 and tokens == 43
            assert not found.keys() & {d.token_ids[0] for d in documents}
            found |= {d.token_ids[0]: d.fields["weight"] for d in documents}
        assert {i: set(weights) for i, weights in found.items()} == {i: {found[i][0]} for i in sizes}
        assert {i: weights[0] for i, weights in found.items()} == pytest.approx({i: weight(i) for i in sizes})


@pytest.mark.parametrize("learn", ["all", "answers"])
def test_pretraining_learns_from_questions_that_are_not_held_out(learn: str, mesh, tmp_path: Path):
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.stages import pretrain as stage

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    task = {"name": "chain_sum", "params": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}
    styles = {"think": 0.5, "tags": 0.0, "steps": 0.0, "plain": 0.5}
    settings = {
        "stage": "pretrain", "model": {"config": str(tmp_path / "config.json")}, "tasks": [task], "optimizer": LINEAR,
        "data": {"num_documents": 240, "styles": styles, "learn": learn, "vocab_size": 300}, "num_steps": 6,
        "documents_per_step": 40, "mtp_loss_weight": 0.2, "expert_bias_rate": 0.004,
    }  # fmt: skip
    config = Pretrain.model_validate({**COMMON, **settings})
    policy = run(stage, config, tmp_path / "run")
    check_by_counting(policy, [0.0] * 320, LRS, rows(tmp_path / "run"), by_document=False)
    built = policy.settings
    assert (built["mtp"], built["mtp_loss_weight"], built["expert_bias_rate"]) == ("joint", 0.2, 0.004)
    assert (built["optimizer"], built["batch"]) == (config.optimizer, config.batch)
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer")
    documents = [d for documents in updates(policy) for d in documents]
    texts = [tokenizer.decode(d.token_ids) for d in documents]
    asked = [text.partition("<|user|>")[2].partition("<|assistant|>")[0] for text in texts]
    assert len(asked) == 240 and all(question.endswith("=") for question in asked)
    # One question in eight is held out by the first 8 bytes of its SHA-256: of 240 none would be by chance.
    assert not any(int.from_bytes(hashlib.sha256(q.encode()).digest()[:8], "big") % 8 == 0 for q in asked)
    listed = [json.loads(line)["question"] for line in (tmp_path / "run/trained_on.jsonl").read_text().splitlines()]
    assert set(asked) == set(listed)
    prompts = {tokenizer.decode(d.token_ids[: d.learn_from]).endswith("<|assistant|>") for d in documents}
    assert prompts == {learn == "answers"}


def test_another_part_is_other_text_of_the_same_kind(mesh, tmp_path: Path):
    """What one stage has read, one that goes on with another `data.part` does not read again."""
    from r1mega.stages import pretrain as stage

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    task = {"name": "chain_sum", "params": {"min_terms": 3, "max_terms": 3, "min_digits": 3, "max_digits": 3}}
    styles = {"think": 0.0, "tags": 0.0, "steps": 0.0, "plain": 1.0}
    settings = {
        "stage": "pretrain", "model": {"config": str(tmp_path / "config.json")}, "tasks": [task], "optimizer": LINEAR,
        "num_steps": 3, "documents_per_step": 20,
    }  # fmt: skip
    asked = []
    for name, part, seed in (("a", 0, 1), ("b", 1, 1), ("c", 0, 2), ("again", 1, 1)):
        data = {"num_documents": 60, "vocab_size": 300, "part": part, "styles": styles}
        run(stage, Pretrain.model_validate({**COMMON, **settings, "data": data, "seed": seed}), tmp_path / name)
        asked.append((tmp_path / name / "trained_on.jsonl").read_text().splitlines())
    a, b, c, again = map(set, asked)
    assert a.isdisjoint(b) and a.isdisjoint(c) and b.isdisjoint(c)  # of 10^9 questions
    assert again == b and len(a) == len(b) == 60
