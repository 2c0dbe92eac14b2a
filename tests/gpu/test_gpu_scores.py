"""A reward model on a device: a policy's scores from its folder, and device memory while it scores alone."""

import pytest
import torch

from r1mega.families.score_head import with_score_head
from r1mega.samples import Document


@pytest.mark.parametrize("setting", ["off", "auto"])
def test_it_is_lent_the_device_and_scores_as_its_policy(make, spec, documents, request, tmp_path, setting):
    if setting == "auto":
        request.getfixturevalue("engine")
    from r1mega.trainer.reward_model import RewardModel
    from r1mega.weights.hf_io import export

    policy = make(with_score_head(spec), dtype="bf16", transformer_engine=setting)
    texts = [Document.of_texts([d.token_ids]) for d in documents]
    want = torch.cat(policy.scores(texts))
    export(policy, tmp_path / "hf", None)
    cuda = policy.mesh.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    model = RewardModel(tmp_path / "hf", policy.mesh, 256, 4)
    weights = sum(t.numel() * t.element_size() for t in policy.state().values())
    for _ in range(2):
        torch.testing.assert_close(torch.tensor(model.score(texts)), want, atol=0.0, rtol=0.0)
        if cuda:  # all of it is on the host again, but for what allocations round up to
            assert torch.cuda.memory_allocated() - before < 0.05 * weights
    assert want.std() > 1e-3
