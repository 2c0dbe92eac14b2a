"""What a rank says when another one is gone."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import RanksLostError
from r1mega.trainer.mesh import Mesh

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5\nmore"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    yield Mesh(TrainerLayout(collective_timeout_s=7), torch.device("cpu"), rank=3, world_size=4, patient=None)


@pytest.mark.parametrize("error", [RuntimeError(GLOO), dist.DistBackendError("NCCL watchdog")])
def test_a_lost_rank_is_told_with_what_was_waited_for(mesh: Mesh, error: RuntimeError) -> None:
    said = r"rank 3 waited for rank 1's part of x: .*collective_timeout_s = 7 s"
    with pytest.raises(RanksLostError, match=said), mesh.waiting("rank 1's part of x"):
        raise error


def test_our_own_faults_keep_their_traceback(mesh: Mesh) -> None:
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), mesh.waiting("all ranks"):
        torch.ones(2) @ torch.ones(3)
