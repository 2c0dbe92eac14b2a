"""Whole training steps against transformers, torch.optim.AdamW and the equations (transformers_steps.py).

Loss, gradients, norm and weights of a dense model, and of a mixture of experts with two MTP depths: packed into some
micro-batches here, document by document there. Two steps of likelihood, one of GRPO at the sampling temperature.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rounding import EPS, LAST_BITS, furthest, last_bits, with_last_bits
from safetensors.torch import load_file
from trainer_data import TINY, make_documents

from r1mega.algos.grpo import GRPOLoss, documents, weighted
from r1mega.algos.likelihood import likelihood_loss
from r1mega.buffers import Float32s
from r1mega.families.registry import model_of, read_model
from r1mega.samples import Sample

ADAM = {"beta1": 0.6, "beta2": 0.9, "eps": 1e-3}
"""eps is of the gradients' order: else a weight would move by the sign of what rounding leaves of a gradient."""
WEIGHT_DECAY, CLIP, LAMBDA, TEMPERATURE = 0.3, 0.5, 0.3, 0.7
RATES = (1e-2, 3e-3, 2e-2)
EPS_LOW, EPS_HIGH, BETA = 0.1, 0.3, 0.5
FEW_BITS = 64 * EPS
"""Relative, of a loss or a norm: sums of up to some 500,000 terms in trees, and a few operations on each."""


def spec_of(name):
    if name == "Qwen2ForCausalLM":
        return read_model(TINY.with_name("qwen2.json"))
    return model_of(
        {**json.loads(TINY.read_text()), "num_nextn_predict_layers": 2, "routed_scaling_factor": 2.5}, TINY
    )


def answers(policy, seed):
    """Samples whose old and reference log-probabilities lie around the policy's own, so that clips and KL matter."""
    asked = make_documents(10, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scored = policy.logprobs(asked, temperature=TEMPERATURE)
    made = []
    for i, (d, logp) in enumerate(zip(asked, scored, strict=True)):
        old, ref = (Float32s((logp + 0.3 * torch.randn(logp.shape, generator=generator)).numpy()) for _ in range(2))
        prompt, completion = d.token_ids[: d.learn_from], d.token_ids[d.learn_from :]
        made.append(Sample(prompt, completion, (-1.0, 0.5, 1.5)[i % 3], old, old, ref))
    return made


def three_steps(policy, samples):
    """[(documents, loss, temperature)] as a stage would hand them to the policy."""
    grpo = GRPOLoss(EPS_LOW, EPS_HIGH, BETA)
    return [
        *((make_documents(14, seed=s), likelihood_loss, 1.0) for s in (1, 2)),
        (documents(weighted(samples, "sequence_mean", max_length=64)), grpo, TEMPERATURE),
    ]


def ours(policy, samples):
    """[(metrics, norm)] of the steps, the first one's gradients, and the weights after the last; published names."""
    from r1mega.weights.source import PolicySource

    source = PolicySource(policy, include_mtp=True)
    found, gradients = [], {}
    for (texts, loss, temperature), lr in zip(three_steps(policy, samples), RATES, strict=True):
        learned = policy.forward_backward(texts, loss, temperature=temperature)
        frozen = {n: torch.zeros_like(t) for n, t in policy.state().items()}
        gradients = gradients or {n: t.clone() for n, t in source.stream(frozen | policy.gradients())}
        found.append((learned, policy.optim_step(lr)))
    return found, gradients, {n: t.clone() for n, t in source}


def request(samples, depths):
    """The same for transformers_steps.py."""
    drawn = [[{"ids": d.token_ids.tolist(), "learn_from": d.learn_from} for d in make_documents(14, seed=s)]
             for s in (1, 2)]  # fmt: skip
    texts = [{"documents": some, "temperature": 1.0, "loss": "likelihood"} for some in drawn]
    learnt = [
        {"ids": (s.prompt_ids + s.completion_ids).tolist(), "learn_from": len(s.prompt_ids), "adv": s.adv,
         "old": s.old_logp.tolist(), "ref": s.ref_logp.tolist()} for s in samples
    ]  # fmt: skip
    grpo = {"clip_low": EPS_LOW, "clip_high": EPS_HIGH, "kl_coef": BETA, "temperature": TEMPERATURE, "loss": "grpo"}
    steps = [{**step, "lr": lr} for step, lr in zip([*texts, {**grpo, "documents": learnt}], RATES, strict=True)]
    adam = {"betas": [ADAM["beta1"], ADAM["beta2"]], "eps": ADAM["eps"]}
    return {
        "adam": adam,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
        "depths": depths,
        "lambda": LAMBDA,
        "steps": steps,
    }


def perturbed(policy):
    """The same policy; norms and biases, which begin all alike, are told apart from each other."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in policy.state().items():
            if tensor.dim() == 1:
                scale = 0.05 if name.endswith("expert_bias") else 0.2
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    policy.weights_changed()
    return policy


def started(policy, samples, folder):
    """transformers_steps.py at work."""
    from r1mega.weights.hf_io import export

    export(policy, folder / "hf", None)
    (folder / "request.json").write_text(json.dumps(request(samples, policy.spec.num_mtp_layers)))
    script = Path(__file__).with_name("transformers_steps.py")
    # In a process of its own: the trainer's CUDA stubs are no place to load Transformers in.
    command = [sys.executable, "-W", "ignore", script, folder / "hf", folder / "request.json", folder / "out"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(process, folder):
    """(class of the model, the steps' figures, tensors) when it is done."""
    printed, error = process.communicate()
    assert process.returncode == 0, error[-2000:]
    kind, figures = json.loads(printed.splitlines()[-1])
    return kind, figures, load_file(folder / "out")


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "DeepseekV3ForCausalLM"])
def test_three_steps_are_those_of_transformers(make_policy, tmp_path, name):
    optimizer = {**ADAM, "weight_decay": WEIGHT_DECAY, "clip_grad": CLIP}
    settings = {"spec": spec_of(name), "mtp": "joint", "mtp_loss_weight": LAMBDA, "optimizer": optimizer}
    policy, moved = (perturbed(make_policy(**settings, chunks_per_micro_batch=2)) for _ in range(2))
    samples = answers(policy, seed=3)
    with started(policy, samples, tmp_path) as process:
        steps, gradients, weights = ours(policy, samples)
        with_last_bits(moved).weights_changed()
        moved_steps, *moved_tensors = ours(moved, samples)
        kind, figures, tensors = results(process, tmp_path)
    assert kind == name

    for (learned, norm), (learned_moved, norm_moved), wanted in zip(steps, moved_steps, figures, strict=True):
        assert norm > 2 * CLIP
        names = ["loss", "entropy", *(["mtp_loss"] if policy.spec.num_mtp_layers else [])]
        pairs = [(learned[name], learned_moved[name], wanted[name]) for name in names]
        pairs.append((norm, norm_moved, wanted["grad_norm"]))
        for got, other, exact in pairs:
            assert got == pytest.approx(exact, rel=FEW_BITS, abs=LAST_BITS * abs(got - other)), (learned, wanted)
    assert 0.1 < steps[2][0]["clip_fraction"] < 0.9 and steps[2][0]["kl/mean"] > 0.1
    if policy.spec.moe:  # a document's last tokens have none so far ahead, and are no tokens to a depth's router
        lengths = [len(s.prompt_ids + s.completion_ids) for s in samples]
        counted = {name: layer.tokens for name, layer in policy.expert_load.layers.items()}
        ahead = {"1": 0, "2": 0, "mtp 0": 1, "mtp 1": 2}
        assert counted == {name: sum(length - k for length in lengths) for name, k in ahead.items()}

    for prefix, mine, other in (("grad/", gradients, moved_tensors[0]), ("weight/", weights, moved_tensors[1])):
        names = [n.removeprefix(prefix) for n in tensors if n.startswith(prefix)]
        left_out = {n.removesuffix(".weight").split(".", 3)[-1] for n in set(mine) - set(names)}
        assert left_out <= {"mlp.gate.e_score_correction_bias", "embed_tokens", "shared_head.head"}
        found = [mine[n] for n in names]
        bound = last_bits(found, [other[n] for n in names])
        assert furthest(found, [tensors[prefix + n] for n in names]) <= bound
        assert min(float(t.abs().max()) for t in found) > 1e-5  # every tensor has learnt, each expert's too
