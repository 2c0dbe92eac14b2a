"""What of a cluster file decides how weights go to servers."""

from r1mega.config.cluster import Cluster
from r1mega.weights.push import BACKENDS
from r1mega.weights.sender import Transfer


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
