"""Grouped-query attention: Megatron's own queries and keys, grouped heads, and positions that restart."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from published import LLAMA31_8B
from rounding import EPS, assert_as_close, furthest, last_bits, with_last_bits

from r1mega.families.registry import FAMILIES
from r1mega.families.spec import Llama3Scaling, Rope, Yarn

LLAMA = {
    **LLAMA31_8B,
    "vocab_size": 384,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}


def test_queries_and_keys_equal_megatrons(make_policy):
    """With Llama 3.1's own factors, the only ones that Megatron knows."""
    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.transformer.attention import SelfAttention

    layer = make_policy(spec=FAMILIES["llama"](LLAMA)).network.decoder.layers[0].self_attention
    torch.manual_seed(0)
    hidden = torch.randn(50, 3, 128)
    rotary = RotaryEmbedding(32, 1.0, rotary_base=500000, rope_scaling=True, use_cpu_initialization=True)
    angles = rotary(50)
    layer._segments = SimpleNamespace(positions=torch.arange(50)[:, None].expand(50, 3), longest=50)
    with torch.no_grad():
        got = layer.get_query_key_value_tensors(hidden)
        query, key, value = SelfAttention.get_query_key_value_tensors(layer, hidden)
        want = [apply_rotary_pos_emb(x, angles, layer.config) for x in (query, key)]
    assert got[0].shape == (50, 3, 4, 32)
    assert got[1].shape == (50, 3, 2, 32)
    for a, b in zip(got, (*want, value), strict=True):
        assert furthest([a], [b]) <= 8 * EPS * b.abs().max()  # two products, a sum, and a cosine's last bits
    assert (got[0] - query).abs().max() > 0.1


def test_grouped_heads_share_keys_and_values(mesh, spec):
    from r1mega.config.cluster import TrainerLayout
    from r1mega.trainer.network.attention import Attention, segments
    from r1mega.trainer.network.model import megatron_config

    torch.manual_seed(0)
    segs = segments([range(0, 17), range(17, 40)], (40, 1))
    core = Attention(megatron_config(spec, TrainerLayout(), expert_bias_rate=0.0), softmax_scale=0.25)
    qkv = [torch.randn(40, 1, n, d, requires_grad=True) for n, d in ((6, 16), (2, 16), (2, 24))]
    got = core(*qkv, segs)
    owner = torch.tensor([0] * 17 + [1] * 23)
    visible = (owner[:, None] == owner) & torch.ones(40, 40, dtype=torch.bool).tril()
    assert_attends_as_torch(qkv, got, attn_mask=visible, scale=0.25, enable_gqa=True)


def assert_attends_as_torch(qkv, got, **options):
    """Values and gradients; `qkv` are [tokens, chunks, heads, channels], `got` is what was made of them."""
    weight, results = torch.randn_like(got), [(got, qkv)]
    for dtype in (torch.float32, torch.float64):
        leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
        made = F.scaled_dot_product_attention(*(x.permute(1, 2, 0, 3) for x in leaves), **options)
        results.append((made.permute(2, 0, 1, 3).flatten(2), leaves))
    ways = [[made.detach(), *torch.autograd.grad((made * weight).sum(), leaves)] for made, leaves in results]
    for ours, plain, exact in zip(*ways, strict=True):
        assert_as_close(ours, plain, exact)


@pytest.mark.parametrize(
    "scaling",
    [None, Llama3Scaling(4.0, 1.0, 4.0, 16), Yarn(4.0, 16, 32.0, 1.0, 1.0, 0.0)],
    ids=lambda s: type(s).__name__,
)
def test_packed_documents_equal_single_ones(make_policy, documents, scaling):
    spec = FAMILIES["llama"](LLAMA)
    policy = make_policy(spec=replace(spec, rope=Rope(10000.0, scaling)), chunk_tokens=96)
    packed = policy.logprobs(documents, temperature=0.7)
    alone = [policy.logprobs([document], temperature=0.7)[0] for document in documents]
    assert furthest(packed, alone) <= last_bits(packed, with_last_bits(policy).logprobs(documents, temperature=0.7))


def test_the_rotation_keeps_lengths_and_depends_on_distance(mesh):
    from r1mega.formats.rotary import frequencies
    from r1mega.trainer.network.grouped import rotate_halves

    inverse, factor = frequencies(Rope(10000.0), 8)
    assert factor == 1.0
    assert inverse.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])
    angles = torch.arange(30).float()[:, None] * inverse
    cos, sin = (x[:, None, None] for x in (angles.cos(), angles.sin()))
    x = torch.randn(1, 1, 1, 8).expand(30, 1, 1, 8)
    turned = rotate_halves(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    dots = torch.einsum("sbnd,tbnd->st", turned, turned)
    angle = 2 * 30 * EPS  # what the largest two of them are rounded by
    torch.testing.assert_close(
        dots.diagonal(7), dots[0, 7].expand(23), atol=2 * angle * float(x[0].square().sum()), rtol=0
    )


def test_a_weightless_bias_starts_at_zero_and_learns(make_policy, documents):
    from trainer_data import nll

    hf = {k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "pretraining_tp", "rope_scaling")}
    policy = make_policy(spec=FAMILIES["qwen2"]({**hf, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    bias = policy.state()["decoder.layers.0.self_attention.linear_qkv.bias"]
    assert bias.shape == (128 + 2 * 64,)
    assert not bias.any()
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-3)
    assert bias.any()


def test_a_table_of_angles_grows_with_positions(mesh):
    from r1mega.formats.rotary import frequencies
    from r1mega.trainer.network.grouped import GroupedAttention

    inverse, factor = frequencies(Rope(10000.0), 8)
    state = SimpleNamespace(_frequencies=inverse, _factor=factor, _table=torch.empty(2, 0, 4))
    for length in (3, 9, 5):
        state._segments = SimpleNamespace(positions=torch.arange(length)[:, None], longest=length)
        cos, sin = GroupedAttention._turns(state)
        torch.testing.assert_close(cos[:, 0, 0, 0], torch.arange(length).float().cos())
        torch.testing.assert_close(sin[:, 0, 0, 0], torch.arange(length).float().sin())
