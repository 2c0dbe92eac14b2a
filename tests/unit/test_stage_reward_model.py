"""Reward models of tiny policies, in this process: they learn a known rule, resume bit for bit, and are exported."""

import json
import math
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import rotation
import torch
from judged_data import FAMILIES, labelled, pairs, rm_config, write, write_judge_base
from safetensors.torch import load_file

from r1mega.buffers import Int32s
from r1mega.config.cluster import Cluster
from r1mega.errors import ConfigError, DataError, RunDirError
from r1mega.recipe.reward_model import RewardModelTraining
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document
from r1mega.trainer.policy import Policy

CLUSTER = Cluster(device="cpu")
ALL = [(family, objective) for family in FAMILIES for objective in ("pairwise", "pointwise")]
LEARNT = rotation.rows("reward models of a known rule", always=ALL[:1], rotating=ALL[1:], take=1)


@pytest.fixture(scope="module")
def bases(mesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        write_judge_base(folder / family, family, mesh)
    return {family: folder / family for family in FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    made = {"pairwise": pairs(1500), "pointwise": labelled(1800)}
    return {objective: write(folder / f"{objective}.jsonl", rows) for objective, rows in made.items()}


def train(
    config: RewardModelTraining,
    folder: Path,
    built: list[Policy] | None = None,
    seen: list[Document] | None = None,
    *,
    resume: bool = False,
) -> None:
    """built: the policy goes here; seen: the documents of every step."""
    from r1mega.stages import reward_model

    def build(*arguments: Any, **settings: Any) -> Policy:
        policy = Policy.build(*arguments, **settings)
        forward_backward = policy.forward_backward
        if built is not None:
            built.append(policy)
        if seen is not None:
            policy.forward_backward = lambda documents, loss: (  # type: ignore[method-assign]
                seen.extend(documents), forward_backward(documents, loss)
            )[1]  # fmt: skip
        return policy

    assert config.faults() == []
    run_dir = RunDir(folder, config, CLUSTER, resume=resume)
    try:
        reward_model.run(config, CLUSTER, run_dir, build=build)
    finally:
        run_dir.close()


def metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows if kind in (None, row["kind"])
    ]


@pytest.mark.parametrize(("family", "objective"), LEARNT)
def test_a_known_rule_is_learnt(bases, data, tmp_path: Path, family: str, objective: str):
    """At least 95% of what was held out; and transformers gives the exported model's scores."""
    built: list[Policy] = []
    train(rm_config(bases[family], data[objective], objective), tmp_path / "run", built)
    before, after = metrics(tmp_path / "run", "validation")
    assert 0.3 < before["validation/accuracy"] < 0.7
    assert after["validation/accuracy"] >= 0.95, after
    assert after["validation/ece"] < before["validation/ece"] + 0.1 and after["validation/brier"] < 0.05
    assert after["validation/longer_worse/accuracy"] > 0.9 and after["validation/longer_worse/pairs"] > 50
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["validation_after"]["accuracy"] == after["validation/accuracy"]
    assert summary["epochs"] == 1 and summary["data"]["rows"] > 1000
    scores_are_transformers(built[0], tmp_path / "run/hf", labelled(12, seed=9))


def scores_are_transformers(policy: Policy, folder: Path, rows: list[dict[str, Any]]) -> None:
    """To 1e-5, of one text at a time and of a batch that is padded on the right."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}],
            return_dict=True,
        )["input_ids"]
        for row in rows
    ]
    ours = torch.cat(policy.scores([Document.of_texts([Int32s(ids)]) for ids in texts]))
    width, pad = max(map(len, texts)), model.config.pad_token_id
    padded = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in texts])
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([ids])).logits.flatten() for ids in texts])
        beside = model(padded, attention_mask=(padded != pad).long()).logits.flatten()
    assert ours.std() > 0.1 and model.config.num_labels == 1
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5 * max(1.0, float(alone.abs().max())))
    torch.testing.assert_close(ours, beside, rtol=0, atol=1e-5 * max(1.0, float(alone.abs().max())))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_that_the_tokenizer_pads_gives_the_scores_of_its_texts(bases, data, tmp_path: Path, family: str):
    """Also where the base's tokenizer pads with its end token, as DeepSeek-V3's and Qwen's do."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = shutil.copytree(bases[family], tmp_path / "base")
    for name, field, value in (("tokenizer_config", "pad_token", "<|eos|>"), ("config", "pad_token_id", None)):
        settings = json.loads((base / f"{name}.json").read_text())
        (base / f"{name}.json").write_text(json.dumps({**settings, field: value}))
    train(few(base, data["pairwise"], max_steps=1, validation=None), tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/hf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/hf")
    texts = ["<|user|>figs?<|assistant|>fig<|eos|>", "<|user|>what?<|assistant|>pear kiwi oat rye nut lime<|eos|>"]
    many = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    assert many["attention_mask"].sum(1).tolist()[0] < many["input_ids"].shape[1]
    with torch.no_grad():
        beside = model(**many).logits
        alone = [model(**tokenizer([t], return_tensors="pt", add_special_tokens=False)).logits for t in texts]
    torch.testing.assert_close(beside, torch.cat(alone), rtol=1e-5, atol=1e-5)


def few(base: Path, file: Path, objective: str = "pairwise", **changes: Any) -> RewardModelTraining:
    """Four steps, validated every second, saved every third."""
    short = {
        "max_steps": 4, "validation": {"share": 0.05, "every_steps": 2}, "save": {"every_steps": 3},
        "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    return rm_config(base, file, objective, **{**short, **changes})


@pytest.mark.parametrize("family", FAMILIES[:1])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(bases, data, tmp_path: Path, monkeypatch, family: str):
    from r1mega.runtime.tracking import Tracker

    config, real = few(bases[family], data["pairwise"]), Tracker.log
    train(config, tmp_path / "whole")

    def log(tracker, kind, step, row):
        real(tracker, kind, step, row)
        if kind == "train" and step == 1:  # noticed after step 2, where a validation is due and no checkpoint
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log", log)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_2"]
    monkeypatch.setattr(Tracker, "log", real)
    train(config, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    got, want = (load_file(tmp_path / of / "hf/model.safetensors") for of in ("run", "whole"))
    assert got.keys() == want.keys() and "score.weight" in got and not any("lm_head" in name for name in got)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_it_goes_on_from_a_reward_model_and_refuses_other_rows(bases, data, tmp_path: Path):
    """A second reward model begins with the first one's score head; a resumed run keeps its data."""
    built: list[Policy] = []
    train(few(bases["qwen2"], data["pairwise"], max_steps=2), tmp_path / "first")
    frozen = few(tmp_path / "first/hf", data["pointwise"], "pointwise", max_steps=1, optimizer={"lr": 1e-12})
    train(frozen, tmp_path / "second", built)
    first, second = (load_file(tmp_path / of / "hf/model.safetensors") for of in ("first", "second"))
    torch.testing.assert_close(first["score.weight"], second["score.weight"], rtol=0, atol=1e-6)
    (tmp_path / "second/summary.json").unlink()
    rows = data["pointwise"].read_text().splitlines(keepends=True)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(rows[1:]))
    other = few(tmp_path / "first/hf", file, "pointwise", max_steps=1, optimizer={"lr": 1e-12})
    with pytest.raises((DataError, RunDirError), match=r"--resume with (other rows|another config)"):
        train(other, tmp_path / "second", resume=True)


def test_settings_reach_the_loss(bases, data, tmp_path: Path):
    """Of one step: the margins, weights and texts of its documents, and what the loss makes of the first scores."""
    seen: dict[str, list[Document]] = {}
    losses: dict[str, float] = {}
    cases = {
        "plain": {}, "gap": {"margin": "gap", "margin_scale": 2.0}, "whole": {"scope": "response"},
    }  # fmt: skip
    for name, changes in cases.items():
        built: list[Policy] = []
        config = few(bases["qwen2"], data["pairwise"], max_steps=1, validation=None, **changes)
        train(config, tmp_path / name, built, seen.setdefault(name, []))
        losses[name] = metrics(tmp_path / name, "train")[0]["loss"]
    margins = {name: {d.fields["margin"].tolist()[0] for d in of} for name, of in seen.items()}
    assert margins["plain"] == {0.0} and margins["gap"] == {2.0, 4.0}
    lengths = {name: sum(len(d.token_ids) for d in of) for name, of in seen.items()}
    assert lengths["plain"] == lengths["gap"] < lengths["whole"] - 32 * 10
    assert {len(of) for of in seen.values()} == {32}
    assert {round(d.fields["weight"].tolist()[0] * 32, 6) for of in seen.values() for d in of} == {1.0}
    # Scores of a fresh head are near 0, so that a loss is near its value there, ln(1 + e^margin).
    of_margin = [math.log1p(math.exp(d.fields["margin"].tolist()[0])) for d in seen["gap"]]
    assert losses["plain"] == pytest.approx(math.log(2), abs=0.15)
    assert losses["gap"] == pytest.approx(sum(of_margin) / 32, abs=0.4)


def test_classes_are_balanced_where_that_is_asked(bases, tmp_path: Path):
    rows = [row for row in labelled(200) if row["safe"]][:8] + [row for row in labelled(200) if not row["safe"]][:56]
    random.Random(0).shuffle(rows)
    file = write(tmp_path / "rows.jsonl", rows)
    for balance, share in (("none", 8 / 64), ("classes", 0.5)):
        seen: list[Document] = []
        config = few(bases["qwen2"], file, "pointwise", balance=balance, batch_size=64, max_steps=1, validation=None)
        train(config, tmp_path / balance, [], seen)
        safe = [d for d in seen if d.fields["safe"].tolist() == [1.0]]
        assert len(seen) == 64 and len(safe) == 8
        assert sum(d.fields["weight"].tolist()[0] for d in safe) == pytest.approx(share)


def test_the_expert_bias_moves_where_that_is_asked(bases, data, tmp_path: Path):
    before = load_file(bases["deepseek_v3"] / "model.safetensors")
    for how in ("frozen", "update"):
        config = few(bases["deepseek_v3"], data["pairwise"], max_steps=1, validation=None, expert_bias=how)
        train(config, tmp_path / how)
        after = load_file(tmp_path / how / "hf/model.safetensors")
        names = [name for name in after if name.endswith("e_score_correction_bias")]
        assert names and not any(name.startswith("model.layers.3.") for name in after)  # the MTP layer
        assert all(torch.equal(before[name], after[name]) for name in names) == (how == "frozen")


def test_what_cannot_be_trained_is_refused(bases, data, tmp_path: Path):
    too_long = {"lr": 1e-3, "warmup_steps": 4}
    with pytest.raises(ConfigError, match=r"warmup_steps: 4 leaves no step at the full learning rate"):
        few(bases["qwen2"], data["pairwise"], max_steps=0, optimizer=too_long).num_steps(4)
    own = tmp_path / "none.jinja"
    own.write_text("{{ messages[0].content }}")
    with pytest.raises(DataError, match="does not write every turn of a conversation"):
        train(few(bases["qwen2"], data["pairwise"], chat_template=str(own)), tmp_path / "a")
