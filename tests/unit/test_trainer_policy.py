"""The policy's verbs: gradients, MTP modes, expert bias, reference, packing."""

import pytest
import torch
from rounding import EPS, LOSS, furthest, last_bits, with_last_bits
from trainer_data import make_documents, nll

from r1mega.buffers import Float32s, Int32s
from r1mega.config.training import Batch
from r1mega.errors import ConfigError, DataError
from r1mega.samples import Document


def gradients(policy):
    return {n: p.main_grad.clone() for n, p in policy.network.named_parameters() if p.requires_grad}


def close(a, b, tolerance):
    return furthest(a.values(), (b[n] for n in a)) <= tolerance


def test_losses_of_micro_batches_are_summed(make_policy, documents):
    """One micro-batch or many: the same loss, metrics and gradient."""
    one, moved = make_policy(mtp="joint"), with_last_bits(make_policy(mtp="joint"))
    many = make_policy(mtp="joint", chunks_per_micro_batch=1)
    a, b, _ = (p.forward_backward(documents, nll) for p in (one, many, moved))
    assert a == pytest.approx(b, rel=LOSS)
    assert a["targets"] == sum(d.num_targets for d in documents)
    bound = last_bits(gradients(one).values(), gradients(moved).values())
    assert close(gradients(one), gradients(many), bound)
    assert max(g.abs().max() for g in gradients(one).values()) > 1e-3


def test_each_micro_batch_is_a_sign_that_something_is_done(make_policy, documents, monkeypatch):
    """What others wait for is a mini-batch at most in parts of one micro-batch; and its seconds are known."""
    from r1mega.runtime import heartbeat

    policy, waits = make_policy(chunks_per_micro_batch=1), []
    tick = heartbeat.tick
    monkeypatch.setattr(heartbeat, "tick", lambda: waits.append(heartbeat.current.wait()) or tick())
    doing = heartbeat.begin()
    doing.enter("update", 0)
    policy.forward_backward(documents, nll)
    assert len(waits) > 2 and all(wait.what == "the other ranks in forward and backward" for wait in waits)
    assert {(wait.limit_s, wait.setting) for wait in waits} == {(600.0, "collective_timeout_s")}
    policy.logprobs(documents, temperature=1.0)
    doing.enter("update", 1)
    assert doing.wait() is None and 0 < doing.beat(0, 0, "").worked["update"] < 60


def test_a_virtual_pipeline_gets_micro_batches_in_whole_groups(mesh, documents):
    from r1mega.trainer.batch import micro_batches

    batch = Batch(chunk_tokens=64, chunks_per_micro_batch=3)
    assert len(micro_batches(documents, batch, mtp_depths=1)) == 2
    made = micro_batches(documents, batch, mtp_depths=1, multiple=5)
    assert len(made) == 5
    assert len({batch.input_ids.shape for batch in made}) == 1
    assert sorted(i for batch in made for i in batch.documents) == list(range(len(documents)))


def test_packed_documents_equal_single_ones(make_policy, documents):
    policy = make_policy(chunk_tokens=96)
    packed = policy.logprobs(documents, temperature=0.7)
    alone = [policy.logprobs([document], temperature=0.7)[0] for document in documents]
    assert [logp.shape for logp in packed] == [(document.num_targets,) for document in documents]
    moved = with_last_bits(policy).logprobs(documents, temperature=0.7)
    assert furthest(packed, alone) <= last_bits(packed, moved)


def test_gradients_add_up_until_the_step(make_policy, documents):
    policy = make_policy()
    policy.forward_backward(documents, nll)
    once = gradients(policy)
    policy.forward_backward(documents, nll)
    twice = {n: 2 * g for n, g in once.items()}
    assert close(twice, gradients(policy), 4 * EPS * max(float(g.abs().max()) for g in twice.values()))
    policy.optim_step(1e-3)
    assert all(not g.any() for g in gradients(policy).values())


def test_learning_lowers_the_loss_and_reports_the_norm(make_policy, documents):
    policy = make_policy(mtp="joint", expert_bias_rate=1e-3)
    first = policy.forward_backward(documents, nll)
    grads = [p.main_grad.double().norm() for p in policy.network.parameters()]
    norm = policy.optim_step(3e-3)
    assert norm == pytest.approx(torch.stack(grads).norm().item(), rel=1e-4)
    for _ in range(4):
        last = policy.forward_backward(documents, nll)
        policy.optim_step(3e-3)
    assert last["loss"] < first["loss"] - 0.5
    assert last["mtp_loss"] < first["mtp_loss"] - 0.3


def test_the_norm_is_measured_without_clipping(make_policy, documents):
    """What clipping does to the weights is held against PyTorch's in test_trainer_optimizer.py."""
    free = make_policy(optimizer={"clip_grad": 0.0})
    clipped = make_policy(optimizer={"clip_grad": 1e-3})
    for policy in (free, clipped):
        policy.forward_backward(documents, nll)
    assert free.optim_step(1e-3) == clipped.optim_step(1e-3) > 0


def test_norms_get_no_weight_decay(make_policy, documents):
    """With weights that get no gradient, only decay moves them: matrices shrink, norms stay."""
    policy = make_policy(optimizer={"weight_decay": 0.5})
    before = {n: t.clone() for n, t in policy.state().items()}
    policy.forward_backward(documents, lambda logp, fields, doc: ((0 * logp).sum(), {}))
    policy.optim_step(0.1)
    for name, tensor in policy.state().items():
        if name.startswith("mtp.") or tensor.dim() == 1:
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor, before[name] * (1 - 0.1 * 0.5))


def test_mtp_reaches_the_trunk_only_when_joint(make_policy, spec, documents, monkeypatch):
    """Trunk gradients of "off" and "detached" equal those of a model that has no MTP layer."""
    from dataclasses import replace

    without, moved = (make_policy(spec=replace(spec, num_mtp_layers=0)) for _ in range(2))
    policies = {mode: make_policy(mtp=mode) for mode in ("off", "detached", "joint")}
    trunk = without.state()
    for policy in policies.values():
        with torch.no_grad():
            for name, tensor in policy.state().items():
                if name in trunk:
                    tensor.copy_(trunk[name])
    reference = without.forward_backward(documents, nll)["loss"]
    want = gradients(without)
    with_last_bits(moved).forward_backward(documents, nll)
    bound = last_bits(want.values(), gradients(moved).values())
    losses = {mode: p.forward_backward(documents, nll) for mode, p in policies.items()}
    for mode, policy in policies.items():
        assert losses[mode]["loss"] == pytest.approx(reference, rel=LOSS)
        got = gradients(policy)
        assert close(want, {n: got[n] for n in want}, bound if mode != "joint" else 1.0)
        assert close(want, {n: got[n] for n in want}, 1e-4) is (mode != "joint")
        trained = [n for n in got if n.startswith("mtp.") and got[n].any()]
        assert bool(trained) is (mode != "off")
    assert "mtp_loss" not in losses["off"]
    assert losses["detached"]["mtp_loss"] == pytest.approx(losses["joint"]["mtp_loss"], rel=LOSS)


def test_the_mtp_loss_stays_inside_documents_and_learnt_targets(make_policy, documents):
    """Packed or alone, the sum over targets that have a predictor two back in their document is the same."""
    policy = make_policy(mtp="detached")
    together = policy.forward_backward(documents, nll)["mtp_loss"]
    total = count = 0
    for d in documents:
        counted = len(d.token_ids) - max(d.learn_from, 2)
        total += policy.forward_backward([d], nll)["mtp_loss"] * counted
        count += counted
    assert together == pytest.approx(total / count, rel=LOSS)


def test_off_leaves_the_mtp_layer_untouched(make_policy, documents):
    policy = make_policy(mtp="off", expert_bias_rate=1e-3)
    before = {n: t.clone() for n, t in policy.state().items() if n.startswith("mtp.")}
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-2)
    assert before
    assert all(torch.equal(policy.state()[n], t) for n, t in before.items())


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_the_expert_bias_moves_by_its_rate(make_policy, documents, rate):
    policy = make_policy(expert_bias_rate=rate)
    bias = {n: t for n, t in policy.state().items() if n.endswith("expert_bias") and not n.startswith("mtp.")}
    before = {n: t.clone() for n, t in bias.items()}
    for _ in range(2):
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-3)
    for name, tensor in bias.items():
        assert tensor.dtype is torch.float32
        if rate:
            assert (tensor - before[name]).abs().max() == pytest.approx(2 * rate)
        else:
            assert torch.equal(tensor, before[name])


def test_the_expert_bias_moves_towards_balance(make_policy):
    """V3 report 2.1.2: down for an expert above the mean load, up for one below it, not at all at the mean.

    By hand: the chosen two of eight experts follow from the bias alone, since affinities are below 1. 32 tokens
    choose experts 2 and 3, which are in the first of two groups: loads 32, 32 and six times 0, mean 8.
    """
    policy = make_policy(expert_bias_rate=0.25)
    document = Document(Int32s(range(5, 37)), 1, {"weight": Float32s.repeated(1 / 31, 31)})
    biases = {n: t for n, t in policy.state().items() if n.endswith("expert_bias") and not n.startswith("mtp.")}
    assert len(biases) == 2

    def moved(bias):
        for tensor in biases.values():
            tensor.copy_(torch.tensor(bias))
        policy.forward_backward([document], nll)
        policy.optim_step(1e-3)
        assert len({tuple(tensor.tolist()) for tensor in biases.values()}) == 1
        for layer in policy.expert_load.layers.values():
            assert layer.bias_change == pytest.approx(0.25)
        return next(iter(biases.values())).tolist()

    assert moved([0.0, 0.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]) == [0.25, 0.25, 3.75, 3.75, 0.25, 0.25, 0.25, 0.25]
    assert {layer.load for layer in policy.expert_load.layers.values()} == {(0, 0, 32, 32, 0, 0, 0, 0)}
    assert {layer.bias for layer in policy.expert_load.layers.values()} == {3.75}
    assert moved([0.0, -4.0, 0.0, 0.0, -8.0, 2.0, 4.0, 0.0]) == [0.25, -3.75, 0.25, 0.25, -7.75, 1.75, 3.75, 0.25]
    assert {layer.bias for layer in policy.expert_load.layers.values()} == {7.75}


def test_an_expert_at_the_mean_load_stays(mesh):
    """Megatron's own rule, which the trainer relies on, on loads whose mean one expert meets."""
    from megatron.core.transformer.moe.moe_utils import get_updated_expert_bias

    moved = get_updated_expert_bias(torch.tensor([[6.0, 2.0, 4.0, 4.0]]), torch.zeros(1, 4), 0.25)
    assert moved.tolist() == [[-0.25, 0.25, 0.0, 0.0]]


def test_padding_is_not_counted_by_the_routers(make_policy, documents):
    policy = make_policy(chunk_tokens=200)
    policy.forward_backward(documents, nll)
    tokens = sum(len(d.token_ids) for d in documents)
    for layer in policy.network.decoder.layers[1:]:
        assert layer.mlp.router.local_tokens_per_expert.sum() == 2 * tokens


def test_logprobs_change_nothing(make_policy, documents):
    policy = make_policy(expert_bias_rate=1e-3)
    policy.refresh_reference()
    policy.forward_backward(documents, nll)
    counts = [m.local_tokens_per_expert.clone() for m in policy.network.modules() if hasattr(m, "expert_bias")]
    before = {n: t.clone() for n, t in policy.state().items()}
    grads, random_state = gradients(policy), torch.get_rng_state()
    policy.logprobs(documents, temperature=1.0)
    policy.logprobs(documents, temperature=1.0, reference=True)
    assert torch.equal(random_state, torch.get_rng_state())
    assert close(grads, gradients(policy), 0.0)
    assert all(torch.equal(policy.state()[n], t) for n, t in before.items())
    after = [m.local_tokens_per_expert for m in policy.network.modules() if hasattr(m, "expert_bias")]
    assert all(torch.equal(a, b) for a, b in zip(counts, after, strict=True))


def test_the_reference_is_the_policy_as_it_was(make_policy, documents):
    policy = make_policy(expert_bias_rate=1e-3)
    with pytest.raises(RuntimeError, match="refresh_reference"):
        policy.logprobs(documents, temperature=1.0, reference=True)
    policy.refresh_reference()
    before = policy.logprobs(documents, temperature=1.0)
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-2)
    now = policy.logprobs(documents, temperature=1.0)
    reference = policy.logprobs(documents, temperature=1.0, reference=True)
    assert all(torch.equal(a, b) for a, b in zip(before, reference, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    again = policy.logprobs(documents, temperature=1.0)
    assert all(torch.equal(a, b) for a, b in zip(now, again, strict=True))


def test_the_temperature_divides_the_logits(make_policy, documents):
    """What `forward_backward` sees is what `logprobs` returns at the same temperature."""
    policy = make_policy()
    seen = []

    def record(logp, fields, doc):
        seen.append((logp.detach().clone(), doc.clone()))
        return logp.sum() * 0, {}

    policy.forward_backward(documents, record, temperature=0.7)
    flat = torch.cat([logp for logp, _ in seen]).sort().values
    want = torch.cat(policy.logprobs(documents, temperature=0.7)).sort().values
    moved = with_last_bits(make_policy()).logprobs(documents, temperature=0.7)
    assert furthest([flat], [want]) <= last_bits([want], [torch.cat(moved).sort().values])
    (_, doc), *_ = seen
    assert doc.unique().tolist() == list(range(len(documents)))
    assert torch.equal(doc, doc.sort().values)


def test_documents_that_do_not_fit_are_refused(make_policy):
    policy = make_policy(chunk_tokens=64)
    with pytest.raises(DataError, match="empty"):
        policy.forward_backward([], nll)
    with pytest.raises(DataError, match="70 tokens"):
        policy.logprobs([Document(Int32s(range(70)))], temperature=1.0)
    with pytest.raises(DataError, match="fields"):
        policy.forward_backward([Document(Int32s([1, 2, 3]), 1, {"weight": Float32s([1.0])})], nll)
    with pytest.raises(DataError, match="learn_from"):
        policy.logprobs([Document(Int32s([1, 2, 3]), 0)], temperature=1.0)


def test_a_document_without_targets_is_scored_as_nothing(make_policy):
    policy = make_policy()
    empty, full = policy.logprobs([Document(Int32s([1, 2, 3]), 3), Document(Int32s([1, 2, 3]), 1)], temperature=1.0)
    assert (len(empty), len(full)) == (0, 2)


def test_layouts_that_do_not_run_are_refused():
    from r1mega.config.cluster import TrainerLayout
    from r1mega.trainer import mesh

    with pytest.raises(ConfigError, match=r"2 ranks .* but 1 processes"):
        mesh.start(TrainerLayout(tp=2), device="cpu", seed=0)
    with pytest.raises(ConfigError, match="cuda"):
        mesh.start(TrainerLayout(), device="cuda", seed=0)


def test_the_same_seed_gives_the_same_weights(make_policy):
    a, b, c = make_policy(seed=3), make_policy(seed=3), make_policy(seed=4)
    name = "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight"
    assert torch.equal(a.state()[name], b.state()[name])
    assert not torch.equal(a.state()[name], c.state()[name])
    assert make_documents(1, 0)[0].token_ids  # the documents' generator is its own


def test_what_is_loaded_is_not_drawn(make_policy, spec, monkeypatch):
    """Neither the time of a draw, nor anything that would pass for a weight; what is drawn is the same bits."""
    from r1mega.families.score_head import with_score_head
    from r1mega.trainer.network import initial

    drawn, whole = [], initial._whole
    monkeypatch.setattr(initial, "_whole", lambda row, *others: drawn.append(row.megatron) or whole(row, *others))
    scores = with_score_head(spec)
    assert all(t.isnan().all() for t in make_policy(first="loaded").state().values())
    assert drawn == []
    found = make_policy(spec=scores, first="score_head").state()
    assert drawn == ["score_head.weight"]
    assert torch.equal(found.pop("score_head.weight"), make_policy(spec=scores).state()["score_head.weight"])
    assert found and all(t.isnan().all() for t in found.values())
