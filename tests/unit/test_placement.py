"""Trainer and engine on the same GPUs: wrong orders are refused, and memory is given up before it is taken."""

import itertools
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import Cluster, RolloutLayout, TrainerLayout, WeightsLayout
from r1mega.errors import RolloutError, ServerLostError
from r1mega.families.registry import read_model
from r1mega.layout.engine_memory import EngineMemory
from r1mega.layout.memory import GIB, RankMemory
from r1mega.layout.turns import MOVES, RESIDUE_BYTES, STATES, shared_memory, way
from r1mega.recipe.memory import Holds, memory_by_state, memory_faults
from r1mega.weights.placement import Apart, Colocated

ROOT = Path(__file__).parents[2]
ROUND = ("learning", "exporting", "pushing", "handed over", "sampling", "waiting", "learning")
REFUSED = sorted(set(itertools.product(STATES, STATES)) - set(MOVES))


class Recorded:
    """A trainer and servers that write down what they are told, and what each holds then."""

    def __init__(self, state: Any) -> None:
        self.told = list[Any]()
        self.turns = Colocated(lambda aside, back: self.told.append((tuple(aside), tuple(back))), self.post)
        self.turns.state = state
        self.turns._servers = [SimpleNamespace(url="one"), SimpleNamespace(url="two")]  # type: ignore[list-item]

    def post(self, server: Any, path: str) -> None:
        self.told.append((server.url, path))


@pytest.mark.parametrize(("state", "after"), REFUSED)
def test_what_may_not_follow_is_refused_and_nothing_is_moved(state: Any, after: Any) -> None:
    seen = Recorded(state)
    with pytest.raises(RuntimeError, match=f"'{after}' does not follow '{state}'"):
        seen.turns.move(after)
    assert (seen.turns.state, seen.told) == (state, [])


@pytest.mark.parametrize(("state", "after"), sorted(MOVES))
def test_a_move_changes_one_side(state: Any, after: Any) -> None:
    """So that no order within it matters: what it takes was given up by a move before."""
    seen, have, want = Recorded(state), STATES[state], STATES[after]
    seen.turns.move(after)
    assert seen.turns.state == after
    assert (have.trainer == want.trainer) != (have.engine == want.engine)
    aside, back = (tuple(sorted(x)) for x in (have.trainer - want.trainer, want.trainer - have.trainer))
    assert not (aside and back)
    if have.trainer != want.trainer:
        assert seen.told == [(aside, back)]
    elif "absent" in (have.engine, want.engine):  # whoever starts servers does so
        assert seen.told == []
    else:
        assert {who for who, _ in seen.told} == {"one", "two"}


def test_a_round_is_the_published_order() -> None:
    """Optimiser and gradients aside, engine's weights awake, push, all aside, cache awake, asleep, all back."""
    seen = Recorded("learning")
    for state in ROUND[1:]:
        seen.turns.move(state)  # type: ignore[arg-type]
    servers = [
        {("one", path), ("two", path)}
        for path in ("/wake_up?tags=weights", "/wake_up?tags=kv_cache", "/sleep?level=2")
    ]
    told = seen.told
    assert told[0] == (("gradients", "optimizer"), ())
    assert set(told[1:3]) == servers[0]
    assert told[3] == (("weights",), ())
    assert set(told[4:6]) == servers[1]
    assert set(told[6:8]) == servers[2]
    assert told[8:] == [((), ("gradients", "optimizer", "weights"))]


def test_every_state_is_reached_and_none_holds_what_does_not_fit_beside() -> None:
    for begin, end in itertools.permutations(STATES, 2):
        path = [begin, *way(begin, end)]
        assert path[-1] == end and all(pair in MOVES for pair in itertools.pairwise(path))
    for name, held in STATES.items():
        if held.engine in ("weights", "everything"):
            assert held.trainer <= ({"weights"} if name == "pushing" else set()), name
    assert way("learning", "pushing") == ["exporting", "pushing"]
    assert way("pushing", "sampling") == ["handed over", "sampling"]
    assert way("sampling", "learning") == ["waiting", "learning"]


# ---- servers over HTTP --------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """A server with vLLM's routes, which answers 409 to what it cannot do where it is."""
    asleep = SimpleNamespace(now=set(), asked=[])
    parts = {"weights", "kv_cache"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(asked.query)
            asleep.asked.append(self.path)
            code = 409
            if asked.path == "/sleep" and query == {"level": ["2"]} and not asleep.now:
                asleep.now, code = set(parts), 200
            elif asked.path == "/wake_up" and (tag := query["tags"][0]) in asleep.now:
                if tag == "kv_cache" and "weights" in asleep.now:
                    code = 409
                else:
                    asleep.now, code = asleep.now - {tag}, 200
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps({"asleep": sorted(asleep.now)}).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    asleep.url, asleep.layout = f"http://127.0.0.1:{server.server_port}", RolloutLayout(request_timeout_s=20)
    yield asleep
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_refuses_a_wrong_order_refuses_none_of_ours(sleeper: Any, monkeypatch: Any) -> None:
    """Whatever proxy the environment names for other hosts: it leads nowhere from here."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    turns = Colocated(lambda aside, back: None)
    turns.before_start()
    assert turns.state == "vacant"
    turns.started([sleeper])
    for _ in range(2):
        turns.before_push()
        assert sleeper.now == {"kv_cache"}
        turns.before_answers()
        assert sleeper.now == set()
        turns.before_learning()
        assert sleeper.now == {"weights", "kv_cache"}
        with pytest.raises(RuntimeError, match="has lost its weights"):
            turns.before_answers()
    sleeper.now = set()
    with pytest.raises(RolloutError, match=r"refused /wake_up\?tags=weights: 409"):
        turns.before_push()
    assert turns.state == "exporting"
    gone = SimpleNamespace(url="http://127.0.0.1:9", layout=RolloutLayout(request_timeout_s=5), log_file="vllm.log")
    turns._servers = [gone]  # type: ignore[list-item]
    with pytest.raises(ServerLostError, match=r"did not answer .* go on with --resume\. Its log: vllm") as lost:
        turns.before_push()
    assert lost.value.exit_code == 75  # launchers start the run again


def test_trainer_and_engine_apart_tell_nobody_anything() -> None:
    turns = Apart()
    for call in (turns.before_start, turns.before_push, turns.before_answers, turns.before_learning):
        call()
    turns.started([])


# ---- memory -------------------------------------------------------------------------------------------------


def test_memory_of_each_state_by_hand() -> None:
    rank = RankMemory(params=0.0, weights=10.0 * GIB, gradients=20.0 * GIB, optimizer=30.0 * GIB)
    engine = EngineMemory(
        params=0.0, weights=8.0 * GIB, cache=40.0 * GIB, module="", received=5.0 * GIB, buckets=2.0 * GIB
    )
    found = shared_memory(rank, engine)
    residue = RESIDUE_BYTES / GIB
    assert {state: held.total / GIB for state, held in found.items()} == {
        "alone": 60 + residue,
        "learning": 60 + 2 * residue,
        "exporting": 10 + 2 * residue,
        "pushing": 10 + 2 + 8 + 5 + 2 + 2 * residue,
        "vacant": residue,
        "waiting": 2 * residue,
        "handed over": 8 + 2 * residue,
        "sampling": 48 + 2 * residue,
    }


@pytest.mark.parametrize(("residue_gib", "refused"), [(0.0, ""), (0.7, "learning")])
def test_a_state_that_does_not_fit_is_refused_by_name(residue_gib: float, refused: str, monkeypatch: Any) -> None:
    """Qwen2.5 1.5B in bf16, 2.9 GiB, over 8 data-parallel ranks on GPUs of 12 GiB: it learns in 10.8 of them, alone,
    and with 0.7 of its own beside; not beside a sleeping engine's 0.7."""
    spec = read_model(ROOT / "configs/models/Qwen2.5-Math-1.5B")
    monkeypatch.setattr("r1mega.layout.turns.RESIDUE_BYTES", residue_gib * GIB)
    machine = Cluster(
        device="cuda", placement="colocated", gpu_memory_gib=12, trainer=TrainerLayout(dp=8, dtype="bf16"),
        rollout=RolloutLayout(servers=8, dtype="bf16", kv_cache_gib=3), weights=WeightsLayout(bucket_mib=1),
    )  # fmt: skip
    found = memory_faults(Holds(engine=True), machine, spec)
    told = f"share, {refused}: trainer 10.8 GiB, engine 0.0, contexts and buffers 1.4, together 12.2"
    assert [told in fault for fault in found] == [True] * bool(refused)
    lines = memory_by_state(Holds(engine=True), machine, spec)
    assert [line.split(":")[0] for line in lines] == list(STATES)
    assert "alone: trainer 10.8 GiB, engine 0.0" in lines[0]
    assert memory_by_state(Holds(engine=False), machine, spec) == []
    apart = machine.model_copy(update={"placement": "disaggregated"})
    assert memory_by_state(Holds(engine=True), apart, spec) == memory_faults(Holds(engine=True), apart, spec) == []
