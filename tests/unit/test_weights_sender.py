"""What of a cluster file decides how weights go to servers, and who waits for a server that never answers."""

import threading
from typing import Any

import pytest

from r1mega.config.cluster import GLOO_BUCKET_MIB, Cluster
from r1mega.weights.push import BACKENDS
from r1mega.weights.sender import Transfer, answered, receiving
from r1mega.weights.wire import LARGEST_BUCKET_BYTES


def test_a_cluster_files_transfer() -> None:
    weights = {"bucket_mib": 3, "verify": 0, "fp8": True}
    apart = Cluster.model_validate({"device": "cuda", "address": "trainer0", "weights": weights})
    assert Transfer.of(apart) == Transfer("nccl", 3, "trainer0", 0, fp8=True)
    together = Cluster(device="cuda", placement="colocated")
    assert Transfer.of(together) == Transfer("ipc", 1024, "", 20)
    assert Transfer.of(Cluster(device="cpu")).transport == "gloo"
    through_the_host = Cluster.model_validate({"device": "cuda", "weights": {"transport": "gloo"}})
    assert Transfer.of(through_the_host).transport == "gloo"
    assert BACKENDS.keys() == {"gloo", "nccl", "ipc"}  # all that a cluster file may name
    assert GLOO_BUCKET_MIB * 2**20 == LARGEST_BUCKET_BYTES  # of which `check` tells


def test_the_process_does_not_wait_for_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    class Silent:
        def start_weight_update(self) -> None: ...

        def update_weights(self, described: Any) -> None:
            asked.set()
            threading.Event().wait()

    monkeypatch.setattr("r1mega.weights.sender._ANSWER_S", 0.01)
    before, client = set(threading.enumerate()), Silent()
    with pytest.raises(RuntimeError, match="given up"), receiving(client, [], lambda: None):  # type: ignore[arg-type]
        assert asked.wait(10.0)
        raise RuntimeError("given up")
    (left,) = set(threading.enumerate()) - before
    assert left.daemon  # of others the interpreter waits at its end


def test_what_a_call_in_the_background_raises_is_its_answer() -> None:
    def refuse(text: str) -> None:
        raise ValueError(text)

    assert str(answered(refuse, "no").exception(10.0)) == "no"
    assert answered(lambda: None).result(10.0) is None
