"""A policy with a score head: transformers' scores and gradients, packing, what scoring leaves alone, folders."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rounding import furthest, last_bits, with_last_bits
from safetensors.torch import load_file
from score_models import bradley_terry, make_pairs, texts_of
from sft_data import TINY
from trainer_data import make_documents, nll

from r1mega.buffers import Int32s
from r1mega.errors import DataError
from r1mega.families.registry import read_model
from r1mega.families.score_head import with_score_head
from r1mega.samples import Document

FAMILIES = ("deepseek_v3", "qwen2")

# In a process of its own: the trainer's CUDA stubs are no place to load Transformers in.
TRANSFORMERS = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification
texts = json.load(sys.stdin)
width = max(map(len, texts))
for folder in sys.argv[1:]:
    model, said = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"], said
    pad = model.config.pad_token_id
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    scores = model.eval()(ids, attention_mask=mask).logits
    assert scores.shape == (len(texts), 1)
    chosen, rejected = scores.view(-1, 2).T
    torch.nn.functional.softplus(rejected - chosen).mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in [name for name in found if ".experts." in name]:  # which transformers 5 keeps in one tensor
        names = ("gate", "up") if "gate_up" in name else ("down",)
        for i, of_one in enumerate(found.pop(name)):
            for part, x in zip(names, of_one.chunk(len(names)), strict=True):
                found[f"{name.rpartition('.')[0]}.{i}.{part}_proj.weight"] = x.clone()
    save_file({"scores": scores[:, 0].detach(), **found}, folder + ".reference.safetensors")
    print(type(model).__name__)
"""


def score_spec(family: str):
    return with_score_head(read_model(TINY / f"{family}.json"))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(9, seed=11)


@pytest.fixture(scope="module")
def trained(make_policy, pairs):
    """By family: a policy whose every tensor, expert bias and score head included, has left its initial value."""
    found = {}
    for family in FAMILIES:
        policy = make_policy(spec=score_spec(family), expert_bias_rate=0.05 if family == "deepseek_v3" else 0.0)
        for _ in range(3):
            policy.forward_backward(pairs, bradley_terry)
            policy.optim_step(1e-2)
        found[family] = policy
    return found


@pytest.fixture(scope="module")
def folders(trained, pairs, tmp_path_factory):
    """By family: the exported folder, and in it transformers' scores and gradients."""
    from r1mega.weights.hf_io import export

    root = tmp_path_factory.mktemp("scores")
    for family, policy in trained.items():
        export(policy, root / family, None)
    command = [sys.executable, "-W", "ignore", "-c", TRANSFORMERS, *(str(root / family) for family in FAMILIES)]
    result = subprocess.run(command, input=json.dumps(texts_of(pairs)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    names = ["DeepseekV3ForSequenceClassification", "Qwen2ForSequenceClassification"]
    assert result.stdout.split() == names
    return {family: root / family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_transformers(trained, folders, pairs, family):
    theirs = load_file(folders[family].with_suffix(".reference.safetensors"))["scores"]
    ours = trained[family].scores(pairs)
    assert [len(of) for of in ours] == [2] * len(pairs)
    assert theirs.std() > 0.1
    torch.testing.assert_close(torch.cat(ours), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_transformers(trained, folders, pairs, family):
    from r1mega.weights.source import PolicySource

    policy = trained[family]
    loss = policy.forward_backward(pairs, bradley_terry)
    source = PolicySource(policy, include_mtp=True)
    found = {name: t.clone() for name, t in source.stream(policy.gradients() | _zeros(policy))}
    policy._zero_grad()
    reference = load_file(folders[family].with_suffix(".reference.safetensors"))
    chosen, rejected = reference["scores"].double().view(-1, 2).T
    assert loss["loss"] == pytest.approx(float(torch.nn.functional.softplus(rejected - chosen).mean()), rel=1e-5)
    assert loss.keys() == {"loss"}
    del reference["scores"]
    assert reference.keys() <= found.keys() and {"score.weight", "model.embed_tokens.weight"} <= reference.keys()
    for name, gradient in found.items():
        if name.endswith("e_score_correction_bias"):
            assert not gradient.any() and name not in reference
            continue
        assert gradient.any() or ".experts." in name, name
        assert (reference[name] - gradient).abs().max() <= 2e-5 * max(gradient.abs().max(), 1e-3), name


def _zeros(policy) -> dict[str, torch.Tensor]:
    learnt = policy.gradients()
    return {n: torch.zeros_like(t) for n, t in policy.state().items() if n not in learnt}


def test_a_pair_is_computed_as_its_texts_are_alone(make_policy, trained, pairs):
    policy = trained["deepseek_v3"]
    together = torch.cat(policy.scores(pairs))
    alone = torch.cat([policy.scores([Document.of_texts([Int32s(ids)])])[0] for ids in texts_of(pairs)])
    moved = make_policy(spec=policy.spec)
    with torch.no_grad():
        for name, tensor in moved.state().items():
            tensor.copy_(policy.state()[name])
    assert furthest([together], [alone]) <= last_bits([together], [torch.cat(with_last_bits(moved).scores(pairs))])
    # Texts of one length at the same place of a chunk, of which no other may change a bit.
    first, second, third = (Int32s(range(a, a + 12)) for a in (5, 50, 100))
    (one,), (two,) = (policy.scores([Document.of_texts([first, x])]) for x in (second, third))
    assert one[0] == two[0] and one[1] != two[1]


def test_the_score_is_read_at_the_last_token_and_by_the_head(trained):
    """Causal: tokens before the end change it, tokens of another text do not; and it is linear in the head."""
    policy = trained["qwen2"]
    text, other = Int32s([5, 6, 7, 8]), Int32s([9, 10])
    ((score, _),) = policy.scores([Document.of_texts([text, other])])
    ((longer, _),) = policy.scores([Document.of_texts([text + Int32s([11]), other])])
    assert score != longer
    ((before, _),) = policy.scores([Document.of_texts([text[:3], other])])
    assert before != score
    head = policy.state()["score_head.weight"]
    with torch.no_grad():
        head.mul_(2)
    ((doubled, _),) = policy.scores([Document.of_texts([text, other])])
    with torch.no_grad():
        head.mul_(0.5)
    assert doubled == 2 * score


def test_scoring_changes_nothing(trained, pairs):
    policy = trained["deepseek_v3"]
    policy.forward_backward(pairs, bradley_terry)
    routers = [m for m in policy.network.modules() if hasattr(m, "expert_bias")]
    kept = [(r.local_tokens_per_expert.clone(), r.expert_bias.clone(), r.seen.clone()) for r in routers]
    before, random_state = {n: t.clone() for n, t in policy.state().items()}, torch.get_rng_state()
    gradients = {n: t.clone() for n, t in policy.gradients().items()}
    policy.scores(pairs)
    assert len(routers) == 2 and torch.equal(random_state, torch.get_rng_state())
    for router, (counted, bias, seen) in zip(routers, kept, strict=True):
        assert counted.sum() > 0
        assert torch.equal(router.local_tokens_per_expert, counted)
        assert torch.equal(router.expert_bias, bias) and torch.equal(router.seen, seen)
    assert all(torch.equal(policy.state()[n], t) for n, t in before.items())
    assert all(torch.equal(policy.gradients()[n], t) for n, t in gradients.items())
    policy._zero_grad()


def test_padding_of_texts_is_not_counted_by_the_routers(make_policy, pairs):
    policy = make_policy(spec=score_spec("deepseek_v3"), expert_bias_rate=1e-3)
    policy.forward_backward(pairs, bradley_terry)
    policy.optim_step(1e-3)
    tokens = sum(len(d.token_ids) for d in pairs)
    assert policy.expert_load.layers.keys() == {"1", "2"}
    assert all(layer.tokens == tokens for layer in policy.expert_load.layers.values())


def test_it_learns_a_rule(make_policy, pairs):
    """The text that has a token is better, wherever it stands; on pairs that it was not trained on."""
    policy = make_policy(spec=score_spec("qwen2"), chunk_tokens=128)

    def ranked(seed: int) -> list[Document]:
        return [_marked(d) for d in make_pairs(24, seed, longest=20)]

    for step in range(12):
        policy.forward_backward(ranked(step), bradley_terry)
        policy.optim_step(3e-3)
    held_out = policy.scores(ranked(99))
    right = sum(float(chosen > rejected) for chosen, rejected in held_out)
    assert right > 0.9 * len(held_out), right / len(held_out)


def _marked(pair: Document) -> Document:
    """With token 1 somewhere in the first text; random texts have it not."""
    first, second = (pair.token_ids[start:stop].tolist() for start, stop in pair.texts)
    first[first[0] % len(first)] = 1
    return Document.of_texts([Int32s(first), Int32s(second)], pair.fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_scores_comes_back_bitwise(make_policy, trained, folders, family):
    from r1mega.weights.hf_io import load_into

    assert replace(read_model(folders[family]), hf={}) == replace(trained[family].spec, hf={})
    tensors = load_file(folders[family] / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 128)
    assert not [n for n in tensors if "lm_head" in n or "layers.3" in n]
    other = make_policy(spec=read_model(folders[family]), seed=5)
    load_into(other, folders[family])
    assert all(torch.equal(t, other.state()[n]) for n, t in trained[family].state().items())
    card = (folders[family] / "README.md").read_text()
    assert "# Reward model" in card and "`pad_token_id`" in card


@pytest.mark.parametrize("family", FAMILIES)
def test_it_begins_on_a_language_model_with_a_head_of_its_own(make_policy, family, tmp_path, caplog):
    from r1mega.weights.hf_io import export, load_into

    model = make_policy(spec=read_model(TINY / f"{family}.json"), seed=3)
    export(model, tmp_path / "lm", None)
    policy, fresh = (make_policy(spec=score_spec(family), seed=4) for _ in range(2))
    load_into(policy, tmp_path / "lm")
    learnt = model.state()
    for name, tensor in policy.state().items():
        assert torch.equal(tensor, fresh.state()[name] if name == "score_head.weight" else learnt[name]), name
    assert not torch.equal(fresh.state()["score_head.weight"], torch.zeros(1, 128))
    left = {"deepseek_v3": "its output head and 1 MTP layer(s) (", "qwen2": "nothing (0 parameters) is left out"}
    assert left[family] in caplog.text and "the score head begins at random" in caplog.text
    # And the optimiser starts from there.
    policy.forward_backward(make_pairs(3, 1), bradley_terry)
    policy.optim_step(1e-4)
    assert all((t - learnt[n]).abs().max() < 1e-3 for n, t in policy.state().items() if n in learnt)


def test_a_language_model_does_not_begin_on_scores(make_policy, folders):
    from r1mega.errors import WeightMappingError
    from r1mega.weights.hf_io import load_into

    with pytest.raises(WeightMappingError, match=r"lm_head\.weight: missing"):
        load_into(make_policy(), folders["deepseek_v3"])


def test_a_checkpoint_resumes_bit_for_bit(make_policy, pairs, tmp_path):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    policies = [make_policy(spec=score_spec("deepseek_v3"), expert_bias_rate=1e-3) for _ in range(2)]
    straight, resumed = policies
    straight.forward_backward(pairs, bradley_terry)
    straight.optim_step(1e-2)
    Checkpointer(straight).save(tmp_path / "step_1", {"step": 1})
    assert Checkpointer(resumed).load(tmp_path / "step_1") == {"step": 1}
    for policy in policies:
        policy.forward_backward(pairs, bradley_terry)
        policy.optim_step(1e-2)
    assert all(torch.equal(t, resumed.state()[n]) for n, t in straight.state().items())


def test_first_weights_from_a_checkpoint_of_either_model(make_policy, trained, tmp_path, caplog):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.megatron_io import load_weights

    model = make_policy(seed=3)
    for name, policy in (("lm", model), ("scores", trained["deepseek_v3"])):
        Checkpointer(policy).save(tmp_path / name, {})
    begun, whole = (make_policy(spec=score_spec("deepseek_v3"), seed=4) for _ in range(2))
    head = begun.state()["score_head.weight"].clone()
    load_weights(begun, tmp_path / "lm")
    assert torch.equal(begun.state()["score_head.weight"], head) and "MTP layer(s)" in caplog.text
    assert all(torch.equal(t, model.state()[n]) for n, t in begun.state().items() if n != "score_head.weight")
    load_weights(whole, tmp_path / "scores")
    assert all(torch.equal(t, trained["deepseek_v3"].state()[n]) for n, t in whole.state().items())


def test_documents_of_the_other_kind_are_refused(make_policy, trained, pairs):
    scores, model = trained["qwen2"], make_policy()
    with pytest.raises(DataError, match=r"document 0: is not scored, .* Document\.of_texts makes"):
        scores.forward_backward(make_documents(1, 0), nll)
    with pytest.raises(DataError, match="document 0: is scored, and a language model"):
        model.logprobs(pairs, temperature=1.0)
    with pytest.raises(RuntimeError, match="with_score_head"):
        model.scores(pairs)
    with pytest.raises(RuntimeError, match="predicts no tokens"):
        scores.logprobs(pairs, temperature=1.0)
    for broken in (Document.of_texts([Int32s([1]), Int32s()]), Document.of_texts([Int32s()])):
        with pytest.raises(DataError, match="texts that begin at"):
            scores.scores([broken])
    with pytest.raises(DataError, match=r"document 0: 2 targets, but fields of length \{'weight': 1\}"):
        scores.scores([Document.of_texts([Int32s([1]), Int32s([2])], {"weight": [1.0]})])
    with pytest.raises(DataError, match="2 texts and is not scored"):
        model.logprobs([Document(Int32s([1, 2, 3]), starts=(1,))], temperature=1.0)


def test_a_pair_that_no_chunk_holds_is_refused(make_policy):
    policy = make_policy(spec=score_spec("qwen2"), chunk_tokens=64)
    with pytest.raises(DataError, match="document 0 has 80 tokens, a chunk holds 64"):
        policy.scores([Document.of_texts([Int32s.repeated(5, 40), Int32s.repeated(6, 40)])])
