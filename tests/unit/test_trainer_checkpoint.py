"""Checkpoints: a resumed run continues bit for bit; a torn folder is refused."""

import random

import numpy as np
import pytest
import torch
from trainer_data import make_documents, nll

from r1mega.errors import CheckpointError


def steps(policy, first, last):
    """(metrics, gradient norm) of training steps first..last."""
    return [
        (policy.forward_backward(make_documents(8, seed=s), nll), policy.optim_step(1e-3))
        for s in range(first, last + 1)
    ]


def test_a_resumed_run_continues_bit_for_bit(make_policy, documents, tmp_path):
    settings = {"mtp": "joint", "expert_bias_rate": 1e-3}
    policy = make_policy(**settings)
    policy.refresh_reference()
    steps(policy, 1, 2)
    policy.save(tmp_path / "step_2", {"step": 2, "note": "half way"})
    draws = (torch.rand(3).tolist(), np.random.rand(), random.random())
    uninterrupted = steps(policy, 3, 4)

    resumed = make_policy(**settings, seed=9)
    assert resumed.load(tmp_path / "step_2") == {"step": 2, "note": "half way"}
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == draws
    assert steps(resumed, 3, 4) == uninterrupted
    assert all(torch.equal(t, resumed.state()[n]) for n, t in policy.state().items())
    ours, theirs = (p.logprobs(documents, temperature=1.0, reference=True) for p in (policy, resumed))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_saving_again_replaces_and_leaves_nothing_behind(make_policy, tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "last", {"step": 1})
    policy.save(tmp_path / "last", {"step": 2})
    assert policy.load(tmp_path / "last") == {"step": 2}
    assert policy.reference is None
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_missing_torn_and_foreign_folders_are_refused(make_policy, spec, tmp_path):
    policy = make_policy()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        policy.load(tmp_path / "nowhere")
    policy.save(tmp_path / "good", {})
    with pytest.raises(CheckpointError, match="vocab_size"):
        make_policy(spec=spec.with_vocab(400, bos=1, eos=2, pad=0)).load(tmp_path / "good")
    (data,) = (tmp_path / "good").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="torn"):
        policy.load(tmp_path / "good")
    (tmp_path / "good" / "policy.json").unlink()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        policy.load(tmp_path / "good")


def test_a_failed_save_leaves_the_old_checkpoint(make_policy, tmp_path, monkeypatch):
    from r1mega.trainer import checkpoint

    policy = make_policy()
    policy.save(tmp_path / "last", {"step": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.dist_checkpointing, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        policy.save(tmp_path / "last", {"step": 2})
    assert policy.load(tmp_path / "last") == {"step": 1}
