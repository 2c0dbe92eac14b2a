"""Latent attention: the complex rotation gives Megatron's own attention scores, plain and with YaRN."""

from dataclasses import replace

import pytest
import torch
from rounding import EPS

from r1mega.families.spec import Rope, Yarn


@pytest.mark.parametrize("yarn", [None, Yarn(4.0, 64, 32, 1, 0.707, 1.0)])
@pytest.mark.parametrize("q_lora_rank", [None, 64])
def test_scores_and_values_equal_megatrons(make_policy, spec, yarn, q_lora_rank):
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    attention = replace(spec.attention, q_lora_rank=q_lora_rank)
    changed = replace(spec, rope=Rope(spec.rope.theta, yarn), attention=attention, num_mtp_layers=0)
    policy = make_policy(spec=changed)
    layer = policy.network.decoder.layers[0].self_attention
    torch.manual_seed(0)
    hidden = torch.randn(40, 3, spec.hidden_size)
    with torch.no_grad():
        q, k, v, *_ = layer.get_query_key_value_tensors(hidden)
        q_ref, k_ref, v_ref, *_ = MLASelfAttention.get_query_key_value_tensors(layer, hidden)
    scores, want = (torch.einsum("sbnd,tbnd->bnst", a, b) for a, b in ((q, k), (q_ref, k_ref)))
    # Sums of the products of two rotated vectors: as many terms as they have channels, none larger than their norms'.
    sizes = torch.einsum("sbn,tbn->bnst", q_ref.norm(dim=-1), k_ref.norm(dim=-1))
    assert ((scores - want).abs() <= (q.shape[-1] + 16) * EPS * sizes).all()
    torch.testing.assert_close(v, v_ref)
    assert want.abs().max() > 1
