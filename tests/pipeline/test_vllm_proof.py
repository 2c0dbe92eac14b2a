"""A real server's pushes are proven, through its own routes; one whose proof fails is mended, and the run goes on."""

from collections.abc import Iterator

import pytest
from live import BOUND, PUSH_S, Live

from r1mega.rollout.server import Server
from r1mega.weights.push import Pusher

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(server, tmp_path_factory.mktemp("proof"))
    live.pusher = Pusher(live, [server], timeout_s=PUSH_S, verify=1)
    live.push(seed=41)
    yield live
    live.pusher.close()


def test_every_part_is_read_back(live: Live) -> None:
    """91 tensors; the head twice, the router's biases as well by the experts that they choose between."""
    proof = live.push(seed=42).proof
    assert proof is not None and (proof.boxes, proof.loaded) == (len(live.source.tensors) + 1 + 2, 0)
    again = live.pusher.read_back()
    assert again is not None and again.boxes == proof.boxes
    print(f"proven in {proof.seconds:.2f} s")


def test_a_server_that_holds_something_else_gets_its_weights_anew(live: Live) -> None:
    """Its experts' kernel keeps the packed copy of the weights before, until it is started anew."""
    live.shim("moe_reload", "off")
    report = live.push(seed=44)
    (recovery,) = report.recoveries
    assert (
        "does not hold what was sent, at 48 places" in recovery.reason
        and "mlp.experts, slot 0 of w13" in recovery.reason
    )
    assert report.proof is not None and live.worst()[0] < BOUND
