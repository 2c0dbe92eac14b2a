"""Fixtures of the trainer's tests: one process group for the session, and small policies on it."""

import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from trainer_data import TINY, make_documents

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.families.spec import ModelSpec
from r1mega.samples import Document

# Time limits would test the machine's load; and what a change breaks must not depend on the examples of the day.
settings.register_profile("r1mega", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("r1mega")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same random tensors, whichever tests ran before it."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return read_model(TINY)


@pytest.fixture(scope="session")
def mesh():
    from r1mega.trainer import mesh

    yield mesh.start(TrainerLayout(threads=1), device="cpu", seed=1)
    mesh.stop()


@pytest.fixture(scope="session")
def make_policy(mesh, spec) -> Callable:
    """Build a policy; keywords override the defaults below."""
    from r1mega.trainer.policy import Policy

    def make(**changes):
        batch = Batch(
            chunk_tokens=changes.pop("chunk_tokens", 64),
            chunks_per_micro_batch=changes.pop("chunks_per_micro_batch", 32),
        )
        optimizer = Optimizer(lr=1e-3, **changes.pop("optimizer", {}))
        chosen = {"mtp": "off", "mtp_loss_weight": 0.3, "expert_bias_rate": 0.0, "seed": 0, **changes}
        return Policy.build(chosen.pop("spec", spec), chosen.pop("mesh", mesh), optimizer, batch, **chosen)

    return make


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Random documents of 5 to 40 tokens, learnt from different places; `weight` is 1 / number of targets."""
    return make_documents(14, seed=7)
