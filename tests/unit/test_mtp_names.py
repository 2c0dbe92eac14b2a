"""MTP layers under DeepSeek's names: vLLM's own draft makes of our folder what Megatron makes of our model."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conversion_data import tiny_spec
from trainer_data import make_documents, nll

from r1mega.buffers import Float32s
from r1mega.samples import Document

ORACLE = Path(__file__).with_name("mtp_oracle.py")


def predicted(folders, documents):
    """For each folder and depth the mean log-probability of what it predicts, by vLLM's forward over transformers."""
    command = [sys.executable, "-W", "ignore", str(ORACLE), *map(str, folders)]
    ids = json.dumps([d.token_ids.tolist() for d in documents])
    result = subprocess.run(command, input=ids, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    return [[fmean(x for doc in docs for x in doc) for docs in depths] for depths in found]


@pytest.fixture(scope="module")
def documents():
    """Every token but the first is learnt, so that a depth k predicts all from its (k + 1)th on."""
    drafts = [Document(d.token_ids, 1) for d in make_documents(6, seed=3)]
    total = sum(d.num_targets for d in drafts)
    return [Document(d.token_ids, 1, {"weight": Float32s.repeated(1 / total, d.num_targets)}) for d in drafts]


@pytest.fixture(scope="module")
def policies(make_policy):
    """One and two MTP depths; every norm and every half of a projection is its own."""
    made = []
    for depths in (1, 2):
        spec = tiny_spec(num_nextn_predict_layers=depths)
        policy = make_policy(spec=spec, mtp="joint")
        generator = torch.Generator().manual_seed(depths)
        for name, tensor in policy.state().items():
            if name.startswith("mtp.") and tensor.dim() == 1:
                tensor.detach().copy_(torch.rand(tensor.shape, generator=generator) * 1.5 + 0.25)
            elif name.startswith("mtp.") and "eh_proj" in name:
                tensor.detach().copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        policy.weights_changed()
        made.append(policy)
    return made


def test_vllms_draft_predicts_what_megatron_does(policies, documents, tmp_path):
    """From folders that we wrote: the table's names and the order of the concatenation are vLLM's.

    Held against the MTP loss that training sees, the mean over depths of each depth's mean cross-entropy.
    """
    from r1mega.weights.hf_io import export

    folders = [tmp_path / f"depths{policy.spec.num_mtp_layers}" for policy in policies]
    for policy, folder in zip(policies, folders, strict=True):
        export(policy, folder, None)
    for policy, theirs in zip(policies, predicted(folders, documents), strict=True):
        assert len(theirs) == policy.spec.num_mtp_layers
        loss = policy.forward_backward(documents, nll)["mtp_loss"]
        assert loss == pytest.approx(-sum(theirs) / len(theirs), rel=2e-6)
