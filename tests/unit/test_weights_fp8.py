"""Weights that travel as FP8 codes and scales: those of the folder that a conversion writes, bit for bit."""

import dataclasses

import pytest
import torch
from conversion_data import ONE, load_all
from stand_in_vllm import GlooMeeting, StandInVllm

from r1mega.conversion.convert import convert
from r1mega.formats import fp8
from r1mega.weights.packed import PackedSender
from r1mega.weights.sender import Link

BARE = dataclasses.replace(ONE, without_tokenizer=True)


@pytest.fixture
def policy(make_policy):
    """One whose routers' biases are not zero, and whose other weights are bf16's, though in fp32."""
    policy = make_policy()
    with torch.no_grad():
        for name, tensor in policy.state().items():
            if name.endswith("expert_bias"):
                tensor += torch.arange(len(tensor)) / 7
            else:
                tensor.copy_(tensor.bfloat16())
    return policy


def test_what_travels_is_what_a_conversion_writes(policy, tmp_path):
    from r1mega.weights.fp8 import Fp8Weights
    from r1mega.weights.hf_io import export
    from r1mega.weights.source import PolicySource

    export(policy, tmp_path / "hf", None)
    convert(tmp_path / "hf", tmp_path / "megatron", "megatron", None, BARE)
    convert(tmp_path / "megatron", tmp_path / "fp8", "hf", "fp8-block", BARE)
    published = load_all(tmp_path / "fp8")
    source = Fp8Weights(PolicySource(policy, include_mtp=True))
    sent = list(source)
    assert [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent] == source.metadata()
    assert dict(sent).keys() == published.keys() and len(sent) == len(published)
    for name, tensor in sent:
        wanted = published[name]
        if wanted.dtype is torch.bfloat16:  # a folder's other weights
            wanted = wanted.float()
        assert tensor.dtype is wanted.dtype, name
        assert torch.equal(tensor.view(torch.uint8), wanted.view(torch.uint8)), name
    codes = [name for name, tensor in sent if tensor.dtype is fp8.CODES]
    assert len(codes) > 50 and not any("gate.weight" in name or "embed" in name or "norm" in name for name in codes)
    biases = [tensor for name, tensor in sent if name.endswith("e_score_correction_bias")]
    assert biases and all(bias.dtype is torch.float32 and bias.any() for bias in biases)


def test_codes_and_scales_arrive_packed_as_they_were_sent(policy):
    """Scales are viewed as fp32 behind codes of one byte; MTP layers stay behind."""
    from r1mega.weights.fp8 import Fp8Weights
    from r1mega.weights.source import PolicySource

    source, worker = Fp8Weights(PolicySource(policy, include_mtp=False)), StandInVllm()
    sender = PackedSender(Link("127.0.0.1", "127.0.0.1", 1, 60.0, 2**16), worker, GlooMeeting())  # type: ignore[arg-type]
    sender.send(source)
    sender.close()
    sent = dict(source)
    assert dict(worker.received).keys() == sent.keys() and not any(".layers.3." in name for name in sent)
    for name, tensor in worker.received:
        assert tensor.dtype is sent[name].dtype
        assert torch.equal(tensor.view(torch.uint8), sent[name].view(torch.uint8)), name


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_the_cluster_files_fp8_is_heeded(policy, monkeypatch, transport):
    from r1mega.rollout.served import NotServed
    from r1mega.runtime.interrupt import Interrupt
    from r1mega.weights import live_engine as module
    from r1mega.weights.fp8 import Fp8Weights
    from r1mega.weights.push import BACKENDS, Backend
    from r1mega.weights.sender import Transfer

    taken = []
    everywhere = BACKENDS[transport].everywhere
    noted = Backend(BACKENDS[transport].connect, lambda source, size: taken.append((source, size)), everywhere)
    monkeypatch.setitem(BACKENDS, transport, noted)
    for on in (True, False):
        transfer = Transfer(transport, 3, fp8=on)
        with module.live_engine(policy, NotServed(), interrupt=Interrupt(), transfer=transfer) as follower:
            follower._take_part()
    (with_fp8, size), (without, _) = taken
    assert isinstance(with_fp8, Fp8Weights) and not isinstance(without, Fp8Weights) and size == 3 * 2**20
