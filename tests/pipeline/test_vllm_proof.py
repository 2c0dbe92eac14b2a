"""A real server's pushes are proven, through its own routes; one whose proof fails is mended, and the run goes on."""

from collections.abc import Iterator

import pytest
from live import BOUND, PUSH_S, Live

from r1mega.buffers import Int32s
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.server import Server
from r1mega.samples import Prompt
from r1mega.weights.push import Pusher
from r1mega.weights.servers import ServerClient

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


def test_blocks_of_before_are_used_where_the_cache_is_not_emptied(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no number of a weight can tell (vllm-project/vllm#9744): a push sees to it, and is told whether it is."""
    long = Request(Prompt("long", "task", "", "", Int32s(range(100))), 1, seed=0)

    def first_logp() -> float:
        ((answer,),) = live.fleet.generate([long], SamplingParams(0.0, 1), version=live.version)
        return answer.logp[0]

    first_logp()
    monkeypatch.setattr(ServerClient, "reset_prefix_cache", lambda client: None)
    live.push(seed=43)
    of_both = first_logp()
    monkeypatch.undo()
    live.push()
    assert abs(of_both - first_logp()) > 0.01


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
