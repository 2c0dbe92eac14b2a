"""When a push is proven, and what its proof says of workers that hold something else. No vLLM here."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from r1mega.weights.digest import digest
from r1mega.weights.verify import Ledger, Proof, ProofError

W = torch.arange(24.0).view(6, 4)
B = torch.arange(6.0)
TENSORS = {"layers.0.q.weight": W, "layers.0.q.bias": B}
Box = tuple[str, tuple[int, ...], torch.Tensor]


class Server:
    def __init__(self, name: str = "s0", world_size: int = 2) -> None:
        self.url, self.incarnation, self.world_size = f"http://{name}", 1, world_size


class Workers:
    """Two ranks that share the rows, each of whose answers a test may change."""

    def __init__(self, *servers: Any) -> None:
        self.servers: tuple[Any, ...] = servers or (Server(),)
        self.held = {
            server: {
                f"dp0:pp0:pcp0:tp{rank}": [
                    ("layers.0.q.weight", (3 * rank, 0), W[3 * rank :][:3].clone()),
                    ("layers.0.q.bias", (3 * rank,), B[3 * rank :][:3].clone()),
                ]
                for rank in range(2)
            }
            for server in self.servers
        }
        self.how, self.asked = "read back", list[str]()

    def prove(self, action: str) -> dict[Any, dict[str, str]]:
        self.asked.append(action)
        return {server: dict(self._lines(workers, action)) for server, workers in self.held.items()}

    def _lines(self, workers: dict[str, list[Box]], action: str) -> Iterator[tuple[str, str]]:
        for worker, boxes in workers.items():
            for name, start, values in boxes:
                number = digest(values, start).item() if action != "plan" else None
                line = [name, start, values.shape, str(values.dtype).removeprefix("torch."), number, self.how]
                yield f"{worker}:fused.{name}|{name}", json.dumps(line)


def prove(workers: Workers, tensors: dict[str, torch.Tensor] = TENSORS, proof: Proof | None = None) -> Proof:
    proof = proof or Proof(1)
    ledger = proof.begin(workers)
    assert [(n, t.data_ptr()) for n, t in ledger.watch(iter(tensors.items()))] == [
        (n, t.data_ptr()) for n, t in tensors.items()
    ]
    proof.check(workers, ledger)
    return proof


def faults(workers: Workers, tensors: dict[str, torch.Tensor] = TENSORS) -> str:
    with pytest.raises(ProofError) as error:
        prove(workers, tensors)
    return str(error.value)


def test_workers_that_hold_what_was_sent_are_proven() -> None:
    workers = Workers()
    found = prove(workers).succeeded()
    assert found is not None and (found.boxes, found.loaded) == (4, 0)
    assert workers.asked == ["plan", "held"]


def test_what_a_kernel_keeps_to_itself_is_counted() -> None:
    workers = Workers()
    workers.how = "loaded"
    found = prove(workers).succeeded()
    assert found is not None and (found.boxes, found.loaded) == (4, 4)


def test_a_difference_is_named_with_its_server_worker_and_box() -> None:
    workers = Workers(Server("s0"), Server("s1"))
    workers.held[workers.servers[1]]["dp0:pp0:pcp0:tp1"][0][2][2, 1] += 1
    assert faults(workers) == (
        "the engine does not hold what was sent, at 1 places:\n  http://s1: dp0:pp0:pcp0:tp1:fused.layers.0.q.weight"
        ": layers.0.q.weight[3:6, 0:4] float32 is not what was sent (read back)"
    )


def test_all_differences_are_named_up_to_a_bound_and_counted() -> None:
    workers = Workers(*(Server(f"s{i}") for i in range(6)))
    said = faults(workers, {name: tensor + 1 for name, tensor in TENSORS.items()})
    assert "at 24 places" in said and said.count("is not what was sent") == 20
    assert said.endswith("and 4 more, which are in the log")


def test_only_the_servers_with_differences_are_at_fault() -> None:
    workers = Workers(Server("s0"), Server("s1"))
    workers.held[workers.servers[1]]["dp0:pp0:pcp0:tp0"][1][2].zero_()
    with pytest.raises(ProofError) as error:
        prove(workers)
    assert list(error.value.faults) == [workers.servers[1]]


def test_a_worker_that_says_nothing_is_missed() -> None:
    workers = Workers()
    del workers.held[workers.servers[0]]["dp0:pp0:pcp0:tp1"]
    said = faults(workers)
    assert "1 workers have answered of 2" in said and "the workers have 12 of its 24 elements" in said


def test_a_tensor_of_which_nobody_has_a_part_is_missed() -> None:
    assert "layers.1.q.weight [6, 4]: no worker has any of it" in faults(
        Workers(), {**TENSORS, "layers.1.q.weight": W}
    )


def test_two_ranks_with_the_same_rows_do_not_make_a_whole() -> None:
    workers = Workers()
    held = workers.held[workers.servers[0]]
    held["dp0:pp0:pcp0:tp1"] = held["dp0:pp0:pcp0:tp0"]
    assert "layers.0.q.weight [6, 4]: the workers have 12 of its 24 elements" in faults(workers)


def test_what_was_not_sent_is_said() -> None:
    said = faults(Workers(), {"layers.0.q.weight": W})
    assert said.count("layers.0.q.bias[") == 2 and "was not sent, and is what it was before" in said


def test_what_can_be_read_neither_back_nor_while_it_is_loaded_is_no_proof() -> None:
    workers = Workers()
    lines = Workers._lines

    def unread(boxes: Any, action: str) -> Iterator[tuple[str, str]]:
        for key, line in lines(workers, boxes, action):
            name, start, shape, dtype, *_ = json.loads(line)
            yield key, json.dumps([name, start, shape, dtype, None, "loaded"])

    workers._lines = unread
    assert "cannot be read back from its kernel, and was not loaded" in faults(workers)


def test_a_worker_in_another_dtype_has_rounded_once() -> None:
    workers, tensors = Workers(), {name: torch.randn_like(tensor) for name, tensor in TENSORS.items()}
    for boxes in workers.held[workers.servers[0]].values():
        boxes[:] = [
            (n, s, tensors[n][tuple(slice(i, i + k) for i, k in zip(s, v.shape, strict=True))].bfloat16())
            for n, s, v in boxes
        ]
    prove(workers, tensors)
    held = workers.held[workers.servers[0]]["dp0:pp0:pcp0:tp0"]
    held[0] = (*held[0][:2], held[0][2].float())  # rounded on the way, and held as if it were not
    assert "is not what was sent" in faults(workers, tensors) or "not announced" in faults(workers, tensors)


def test_what_was_proven_is_read_back_again() -> None:
    """As long as no other push has come in between, of which nothing is known."""
    workers = Workers()
    proof = prove(workers)
    assert proof.succeeded() and proof.again() and workers.asked == ["plan", "held", "again"]
    workers.held[workers.servers[0]]["dp0:pp0:pcp0:tp1"][0][2].zero_()
    with pytest.raises(ProofError, match=r"layers.0.q.weight\[3:6, 0:4\] float32 is not what was sent"):
        proof.again()
    proof.succeeded()
    assert proof.again() is None


@pytest.mark.parametrize(
    ("every", "proven"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (20, [0])]
)
def test_the_first_push_and_each_nth_is_due(every: int, proven: list[int]) -> None:
    proof, workers, found = Proof(every), Workers(), []
    for push in range(6):
        if proof.due(workers.servers):
            found.append(push)
            prove(workers, proof=proof)
        proof.succeeded()
    assert found == proven


def test_the_first_push_to_a_server_that_started_again_is_due() -> None:
    proof, workers = Proof(20), Workers()
    prove(workers, proof=proof).succeeded()
    assert not proof.due(workers.servers)
    workers.servers[0].incarnation = 2
    assert proof.due(workers.servers) and not Proof(0).due(workers.servers)
    prove(workers, proof=proof).succeeded()
    assert not proof.due(workers.servers)


def test_a_ledger_takes_each_box_once_whoever_has_it() -> None:
    workers = Workers(Server("s0"), Server("s1"))
    ledger = Proof(1).begin(workers)
    for _ in ledger.watch(iter(TENSORS.items())):
        pass
    assert isinstance(ledger, Ledger) and len(ledger.numbers) == 4 and ledger.shapes["layers.0.q.bias"] == (6,)
    assert ledger.seconds > 0


def test_a_box_of_another_rank_than_the_tensor_is_a_difference() -> None:
    workers = Workers()
    said = faults(workers, {"layers.0.q.weight": W, "layers.0.q.bias": B.view(2, 3)})
    assert "layers.0.q.bias[0:3] float32 is not what was sent" in said
