"""Expert loads: every choice counted once, the figures by hand, and nothing of the training changed by counting."""

import math

import pytest
import torch
from rounding import EPS
from trainer_data import nll

from r1mega.buffers import Float32s, Int32s
from r1mega.samples import Document


def step(policy, documents):
    learned = policy.forward_backward(documents, nll)
    return learned, policy.optim_step(1e-3)


def test_the_choices_of_every_layer_are_counted_once(make_policy, spec, documents):
    policy = make_policy(mtp="joint", expert_bias_rate=1e-3, chunk_tokens=200)
    policy.logprobs(documents, temperature=1.0)  # scoring counts nothing
    policy.forward_backward(documents, nll)
    counters = {id(m.expert_bias): m for m in policy.network.modules() if hasattr(m, "local_tokens_per_expert")}
    own = {
        n: counters[id(t)].local_tokens_per_expert.tolist() for n, t in policy.state().items() if id(t) in counters
    }
    assert policy.expert_load is None
    policy.optim_step(1e-3)
    load = policy.expert_load
    assert list(load.layers) == ["1", "2", "mtp 0"]
    for (where, layer), (name, megatron) in zip(load.layers.items(), own.items(), strict=True):
        # The last token of a document has none behind it for the MTP layer to see.
        num_tokens = sum(len(d.token_ids) - (where == "mtp 0") for d in documents)
        assert list(layer.load) == megatron, name
        assert sum(layer.load) == num_tokens * load.top_k == layer.tokens * load.top_k
        assert (layer.bias, layer.bias_change) == pytest.approx((1e-3, 1e-3))
    step(policy, documents[:1])
    assert policy.expert_load.layers["1"].tokens == len(documents[0].token_ids)  # a step begins at 0


def test_layers_that_do_not_run_and_biases_that_do_not_move(make_policy, documents):
    policy = make_policy(mtp="off", expert_bias_rate=0.0)
    step(policy, documents)
    assert list(policy.expert_load.layers) == ["1", "2"]
    assert {layer.bias_change for layer in policy.expert_load.layers.values()} == {0.0}


def test_entropy_and_auxiliary_loss_by_hand(make_policy, spec):
    """Against the affinities themselves, taken by a hook, of one document without padding."""
    policy = make_policy(chunk_tokens=32)
    seen = {}
    for i in (1, 2):
        router = policy.network.decoder.layers[i].mlp.router
        router.register_forward_hook(lambda r, inputs, out, i=i: seen.update({str(i): (r, inputs[0], out[1])}))
    tokens = Int32s(range(5, 37))
    policy.forward_backward([Document(tokens, 1, {"weight": Float32s.repeated(1 / 31, 31)})], nll)
    policy.optim_step(0.0)
    bound = spec.hidden_size * EPS  # the terms of a score, which are of the order of 1 together
    for name, (router, hidden, chosen) in seen.items():
        scores = torch.sigmoid(hidden.detach().double().flatten(0, -2) @ router.weight.detach().double().T)
        affinity = scores / scores.sum(-1, keepdim=True)
        layer = policy.expert_load.layers[name]
        assert layer.load == tuple(chosen.sum(0).tolist())
        assert layer.entropy == pytest.approx(-(affinity * affinity.log()).sum(-1).mean().item(), abs=bound)
        assert 0 < layer.entropy <= math.log(8) + bound
        f = 8 / (2 * 32) * chosen.sum(0).double()
        assert layer.aux_loss == pytest.approx((f * affinity.mean(0)).sum().item(), abs=bound)


def test_counting_changes_nothing(make_policy, documents, monkeypatch):
    """The same losses, norms and weights to the last bit as with Megatron's own router."""
    from megatron.core.transformer.moe.router import TopKRouter

    from r1mega.trainer import balance

    counted, plain = (make_policy(mtp="joint", expert_bias_rate=1e-3) for _ in range(2))
    with_counts = [step(counted, documents) for _ in range(3)]
    monkeypatch.setattr(balance.Router, "routing", TopKRouter.routing)
    without = [step(plain, documents) for _ in range(3)]
    assert with_counts == without
    assert counted.expert_load.layers and not plain.expert_load.layers
    theirs = plain.state()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in counted.state().items())
