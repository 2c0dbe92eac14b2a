"""Two servers of which one or both are killed, frozen or slowed down at any moment, round after round.

What answers is a stand-in that starts within seconds; servers, guards, pushes and signals are real. Whatever
happens, each prompt has exactly G answers, drawn with their seeds from the weights that were asked for, and each
prompt is told of once; and the next round goes on with the same servers.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import rotation
import torch
from chaos_server import said
from tiny_model import make_tokenizer

from r1mega.buffers import Int32s
from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.server import Server
from r1mega.samples import Completion, Prompt
from r1mega.weights.push import Pusher

pytestmark = pytest.mark.vllm  # without it no server of any kind is started

G, NUM_PROMPTS, NUM_TENSORS = 4, 24, 12
STANDIN = Path(__file__).with_name("chaos_server.py")
ROUNDS = rotation.rows("rounds of two servers", rotating=range(100), take=10)


class Round(NamedTuple):
    """What happens to whom, and when."""

    what: str
    when: str
    victims: tuple[int, ...]
    moment: int
    """Of tensors read, or prompts answered."""
    again: int | None
    """Prompts answered, after which the first victim is struck once more."""

    @classmethod
    def of(cls, seed: int) -> Self:
        rng = random.Random(seed)
        what = rng.choices(("killed", "frozen", "slow"), (4, 3, 3))[0]
        when = rng.choice(("between", "pushing", "sampling"))
        victims = rng.choice(((0,), (1,))) if what == "slow" else rng.choice(((0,), (1,), (0,), (1,), (0, 1)))
        moment = rng.randrange(1, NUM_TENSORS if when == "pushing" else NUM_PROMPTS // 2)
        again = rng.randrange(NUM_PROMPTS // 2, NUM_PROMPTS) if what != "slow" and rng.random() < 0.2 else None
        return cls(what, when, victims, moment, again)


class StandIn(Server):
    def _command(self) -> list[str]:
        return [sys.executable, str(STANDIN), str(self.port)]


class Rig:
    """The servers, what is pushed to them, and what is done to them."""

    def __init__(self, folder: Path) -> None:
        make_tokenizer().save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"vocab_size": 512, "eos_token_id": 257}))
        layout = RolloutLayout(max_num_seqs=16, health_timeout_s=2.0, max_restarts=100)
        self.servers = [
            StandIn(folder, layout, max_model_len=64, seed=0, log_file=folder / f"log-{i}") for i in range(2)
        ]
        self.pusher = Pusher(self, self.servers, bucket_mib=1, timeout_s=30.0)
        self.recoveries, self.version = list[Recovery](), 0
        self.fleet = Fleet(
            self.servers,
            reload=lambda server, version: self.pusher.push(version, [server]) and None,
            on_recovery=self.recoveries.append,
        )
        self.on_tensor: Callable[[int], None] = lambda number: None
        for server in self.servers:
            server.wait_ready()

    def metadata(self) -> Any:
        return [(f"w{i}", torch.float32, (2**18,)) for i in range(NUM_TENSORS)]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for i in range(NUM_TENSORS):
            self.on_tensor(i)
            yield f"w{i}", torch.full((2**18,), float(self.version))

    def signal(self, victims: tuple[int, ...], number: int) -> None:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.servers[victim].pid, number)

    @contextlib.contextmanager
    def slowed(self, victims: tuple[int, ...]) -> Iterator[None]:
        """They run an eighth of the time."""
        over = threading.Event()

        def stop_and_go() -> None:
            while not over.is_set():
                self.signal(victims, signal.SIGSTOP)
                over.wait(0.14)
                self.signal(victims, signal.SIGCONT)
                over.wait(0.02)

        thread = threading.Thread(target=stop_and_go)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("chaos"))
    yield rig
    rig.pusher.close()
    for server in rig.servers:
        server.stop()


def requests() -> list[Request]:
    return [Request(Prompt(f"p{i}", "task", "", "", Int32s([i, 7])), G, 1000 * i) for i in range(NUM_PROMPTS)]


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_round(rig: Rig, seed: int) -> None:
    chaos, begin = Round.of(seed), time.monotonic()
    number = signal.SIGKILL if chaos.what == "killed" else signal.SIGSTOP
    before = [server.incarnation for server in rig.servers]
    struck, arrived = set[str](), list[int]()
    rig.recoveries.clear()
    rig.version += 1

    def strike(when: str, victims: tuple[int, ...]) -> None:
        if when not in struck and chaos.what != "slow":
            struck.add(when)
            rig.signal(victims, number)

    def at_tensor(i: int) -> None:
        if chaos.when == "pushing" and i == chaos.moment:
            strike("pushing", chaos.victims)

    def arrive(index: int, completions: tuple[Completion, ...]) -> None:
        arrived.append(index)
        if chaos.when == "sampling" and len(arrived) == chaos.moment:
            strike("sampling", chaos.victims)
        if chaos.again is not None and len(arrived) == chaos.again:
            strike("again", chaos.victims[:1])

    rig.on_tensor = at_tensor
    with rig.slowed(chaos.victims) if chaos.what == "slow" else contextlib.nullcontext():
        if chaos.when == "between":
            strike("between", chaos.victims)
        report = rig.pusher.push(rig.version)
        answers = rig.fleet.generate(requests(), SamplingParams(1.0, 48), version=rig.version, on_answer=arrive)
    end = answers[0][0].token_ids[-1]
    for request, group in zip(requests(), answers, strict=True):
        assert [(c.prompt_id, c.index, c.seed, c.weight_version) for c in group] == [
            (request.prompt.id, k, request.seed + k, rig.version) for k in range(G)
        ]
        assert [c.token_ids.tolist() for c in group] == [
            said(float(rig.version), request.prompt.token_ids.tolist(), request.seed + k, end) for k in range(G)
        ]
    assert sorted(arrived) == list(range(NUM_PROMPTS))
    recovered = len(report.recoveries) + len(rig.recoveries)
    print(f"round {seed}: {chaos}; {recovered} recoveries, {time.monotonic() - begin:.1f} s")
    if chaos.what != "slow":
        assert all(rig.servers[victim].incarnation > before[victim] for victim in chaos.victims)
