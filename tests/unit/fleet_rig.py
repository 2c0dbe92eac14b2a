"""Two fake servers and a fleet over them, and faults for their completions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_server import EOS, FakeServer, answer, request, save_tokenizer, stream

from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.recovery import Recovery
from r1mega.samples import Completion

G = 3
PARAMS = SamplingParams(temperature=0.7, max_new_tokens=5)


class Rig:
    """Two fake servers, a fleet over them, and what it did."""

    def __init__(self, folder: Path) -> None:
        save_tokenizer(folder)
        settings = {"max_num_seqs": 6, "health_timeout_s": 60, "max_restarts": 2}
        self.servers = [FakeServer(folder, **settings) for _ in range(2)]
        self.servers[1].after = self.servers[0]  # so that the first one's faults are met
        self.recoveries, self.arrived = list[Recovery](), list[int]()
        self.reloaded = list[tuple[FakeServer, int]]()
        self.reload: Callable[[Any, int], None] | None = self._reload

    def limits(self, server: FakeServer, **limits: float) -> None:
        """Time limits that this server is going to miss, and may miss again where the machine stops for a while."""
        server.layout = server.layout.model_copy(update={"max_restarts": 100, **limits})

    def _reload(self, server: FakeServer, version: int) -> None:
        assert server.version == "0"
        server.version = str(version)
        self.reloaded.append((server, version))

    def fleet(self) -> Fleet:
        return Fleet(self.servers, reload=self.reload, on_recovery=self.recoveries.append)  # type: ignore[arg-type]

    def generate(self, num: int = 12, version: int = 0, **kwargs: Any) -> list[tuple[Completion, ...]]:
        return self.fleet().generate(
            [request(i, G) for i in range(num)],
            PARAMS,
            version=version,
            on_answer=lambda index, _: self.arrived.append(index),
            **kwargs,
        )

    def check(self, answers: list[tuple[Completion, ...]], num: int = 12) -> None:
        """Exactly G completions of each prompt, the ones that an undisturbed server gives, each told of once."""
        assert sorted(self.arrived) == list(range(num))
        for i, group in enumerate(answers):
            assert [(c.prompt_id, c.index, c.seed) for c in group] == [(f"p{i}", k, 100 * i + k) for k in range(G)]
            assert [tuple(c.token_ids) for c in group] == [(i % 16, 1 + k, EOS) for k in range(G)]


def on_completions(act: Callable[[Any], None]) -> Callable[[Any], bool]:
    """A fault of /v1/completions alone."""

    def fault(handler: Any) -> bool:
        if handler.path == "/v1/completions":
            act(handler)
        return handler.path == "/v1/completions"

    return fault


def half(handler: Any) -> None:
    data = stream(answer(handler.body))
    handler.send(data[: len(data) // 2], len(data))
    handler.close_connection = True


def reset(handler: Any) -> None:
    handler.connection.close()


def status(code: int) -> Callable[[Any], None]:
    def act(handler: Any) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return act
