"""The ranks that the tests of this folder share, and what more than one module compares with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import smollm2_model
from layouts import FULL, PARTS, TWO_RANKS, train, trained
from rank_pool import Pool

_pools: list[Pool] = []


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Processes that are the trainer's ranks, in one task after another."""
    pool = Pool(tmp_path_factory.mktemp("ranks"))
    _pools.append(pool)
    yield pool
    pool.close()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """No rank waits in memory while other folders' tests run; a test that comes back here gets new ones."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        for pool in _pools:
            pool.close()


@pytest.fixture(scope="session")
def one_rank(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """By layout; "rounded" is what rounding alone makes of it on this machine, by micro-batches of another size."""
    folder = tmp_path_factory.mktemp("one")
    ranks.run(1, "layouts.in_smaller_micro_batches", folder, ["rounded"])
    return {**train(ranks, 1, folder, ("", FULL, PARTS)), "rounded": trained(folder, "rounded")}


@pytest.fixture(scope="session")
def two_ranks(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return train(ranks, 2, tmp_path_factory.mktemp("two"), TWO_RANKS)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as smollm2.py makes it, and its conversion: hf, megatron, reference.safetensors, greedy.json."""
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2_model.make(folder)
    return folder
