"""One vLLM server in processes of its own: start, wait, restart, stop it, whatever happens to the trainer.

Starting and waiting are separate calls, so that the trainer builds its model in the meantime:

    with Server(model_dir, layout, max_model_len=512, seed=0, log_file=run_dir / "vllm.log") as server:
        ...
        server.wait_ready()

A restart may change `url`, `port` and `pid`: read them when they are used.
"""

import atexit
import json
import logging
import random
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout.attendant import NodePart, OrderedServer, address_of
from r1mega.rollout.command import ServedFolder, ServerPlace, Start, command, environment
from r1mega.rollout.installed import fault_of
from r1mega.runtime import env, openmp, process

log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
CPU = ServerPlace()
PORTS = range(20000, 30000)
"""Where a free port is looked for: below the ports that the kernel hands to outgoing connections, since one of
those may take the port in the half minute until vLLM listens."""
_PORT_GRACE_S = 10.0
"""How long the killed processes may keep a configured port."""


class Server:
    """A vLLM server of one model. After each start its weights are version 0, those of `model_dir`."""

    def __init__(
        self,
        model_dir: Path,
        layout: RolloutLayout,
        *,
        max_model_len: int,
        seed: int,
        log_file: Path,
        place: ServerPlace = CPU,
    ) -> None:
        """Start the processes; `wait_ready` waits for them.

        Args:
            model_dir: Hugging Face folder with config.json, weights and tokenizer.
            max_model_len: longest prompt + answer, in tokens.
            seed: of the engine; answers depend on their requests' own seeds.
            log_file: appended to; gets everything the server writes.
            place: where it runs, and how weights come to it.

        Raises:
            RolloutError: vLLM is not installed, or is one for another device; the port is taken, or `model_dir`
                holds no model.
        """
        if (fault := fault_of(layout, place.device)) is not None:
            raise RolloutError(fault)
        if not (model_dir / "config.json").is_file():
            raise RolloutError(f"{model_dir} is no Hugging Face model folder: it has no config.json")
        if not (model_dir / "tokenizer.json").is_file():
            raise RolloutError(f"{model_dir} has no tokenizer.json; save the model's fast tokenizer there")
        self.model_dir = model_dir
        """What a start begins with; whoever gives it another folder's weights (`weights.folder`) changes it."""
        self.layout, self.place, self.log_file, self.host = layout, place, log_file, layout.host
        self.world_size = layout.tp * layout.dp
        """Ranks that receive weights, each its part."""
        config = json.loads((model_dir / "config.json").read_text())
        self.vocab_size: int = config["vocab_size"]
        self.incarnation = 0
        """Starts so far: what was told to an earlier one, such as weights, is gone."""
        self.foreign = False
        """Whether its weights are none of `model_dir`'s yet; whoever gives it those says so (`rollout.kept`)."""
        self.max_model_len, self._seed = max_model_len, seed
        self._ended_for_good, self._ready = False, False
        self._processes = threading.RLock()  # stop() may come while a restart runs in another thread
        self._restarting = threading.Lock()
        self.start()

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start the processes of a server that has none; `wait_ready` waits for them.

        Raises:
            RolloutError: the port is taken, or `stop` was called.
        """
        with self._processes:
            if self._ended_for_good:
                raise RolloutError(f"the vLLM server of {self.model_dir} was stopped and will not start again")
            if self.place.nodes:
                folder, limit_s = Path(self.layout.attendants), self.layout.start_timeout_s
                self._addresses = [address_of(folder, node, limit_s) for node in self.place.nodes]
                self.host = self._addresses[0]
            self.port = self._choose_port()
            self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
            self._started, self._ready = time.monotonic(), False
            self._process = self._spawn()
            self.pid = self._process.pid
            """Of the group that all processes of the server on this host are in; 0 where it is on others."""
            self.incarnation += 1
            self.foreign = False

    def _spawn(self) -> process.Spawned:
        atexit.register(self.stop)
        if self.place.nodes:
            return OrderedServer(Path(self.layout.attendants), self._parts())
        return process.spawn(
            [*self.layout.launch, *self._command()], environment=self._environment(), log_file=self.log_file
        )

    def restart(self, reason: str) -> float:
        """Kill the server, which may be frozen, and start it anew with the same arguments and the first weights.

        Returns:
            Seconds until it was ready.

        Raises:
            RolloutError: it does not start, or `stop` was called meanwhile.
        """
        log.warning("restarting the vLLM server at %s: %s", self.url, reason)
        begin = time.monotonic()
        with self._restarting:
            # SIGTERM is lost on frozen processes. One that `launch` started elsewhere is out of SIGKILL's reach:
            # its launcher ends it when told to with SIGTERM.
            self._end(grace_s=STOP_GRACE_S if self.layout.launch else 0.0)
            self.start()
            self.wait_ready()
        return time.monotonic() - begin

    def lengthen(self, max_model_len: int) -> float:
        """`restart` with room for longer sequences: of `max_model_len` tokens, prompt and answer together."""
        self.max_model_len = max_model_len
        return self.restart(f"its answers may be longer from now on, and with their prompts {max_model_len} tokens")

    def _choose_port(self) -> int:
        """The configured port, or a free one."""
        layout = self.layout
        if layout.launch or self.place.nodes:  # ports of another host cannot be probed
            return layout.port or random.SystemRandom().choice(PORTS)
        if not layout.port:
            try:
                return process.free_port(self.host, PORTS)
            except OSError as error:
                raise RolloutError(
                    f"{error.strerror} from here. If that is another host, set rollout.launch to what starts a "
                    "command there."
                ) from error
        deadline = time.monotonic() + (_PORT_GRACE_S if self.incarnation else 0.0)
        while not process.port_is_free(layout.port, self.host):
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"port {layout.port} of {self.host}, which rollout.port asks for, is taken by another process. "
                    "Set rollout.port to 0 (any free port) or to another port, or stop that process."
                )
            time.sleep(0.05)
        return layout.port

    def _command(self) -> list[str]:
        """Command line of the server."""
        start = Start(self.host, self.port, self.max_model_len, self._seed)
        return command(ServedFolder.read(self.model_dir), self.layout, self.place, start)

    def _environment(self) -> dict[str, str]:
        """Environment of the server."""
        found = environment(ServedFolder.read(self.model_dir), self.layout, self.place, visible=env.visible_gpus())
        inherited = process.child_environment(**found, **(openmp.preload() if self.place.device == "cpu" else {}))
        others = {name for name, value in self.place.variables if value is None}
        return {name: value for name, value in inherited.items() if name not in others}

    def _parts(self) -> dict[NodePart, dict[str, object]]:
        """What each of its nodes is to start."""
        folder, parts = ServedFolder.read(self.model_dir), dict[NodePart, dict[str, object]]()
        for number, (node, address) in enumerate(zip(self.place.nodes, self._addresses, strict=True)):
            start = Start(self.host, self.port, self.max_model_len, self._seed, number, self._addresses[0])
            own = environment(folder, self.layout, self.place, own_address=address)
            mark = f".{number}" if number else ""
            parts[NodePart(node, self.place.number, number)] = {
                "command": command(folder, self.layout, self.place, start),
                "environment": {**own, **(openmp.always() if self.place.device == "cpu" else {})},
                "log": str(self.log_file.with_name(f"{self.log_file.stem}{mark}{self.log_file.suffix}").absolute()),
            }
        return parts

    def alive(self) -> bool:
        """Whether the server's processes run; it may not be ready yet."""
        return self._process.poll() is None

    def healthy(self, timeout_s: float, *, engine: bool = True) -> bool:
        """Whether it answers within `timeout_s`: not if it is gone, frozen, still starting or its engine died.

        Args:
            engine: ask the engine as well, which answers only between two steps and after a weight update.
        """
        routes = ("/health", "/is_paused") if engine else ("/health",)
        try:
            with self._http(timeout_s) as http:
                return self.alive() and all(http.get(route).status_code == httpx.codes.OK for route in routes)
        except httpx.HTTPError:
            return False

    def _http(self, timeout_s: float) -> httpx.Client:
        # Plain http: reading the certificates would take longer than the calls.
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False, verify=False)

    def wait_ready(self) -> float:
        """Wait until the server answers, up to `layout.start_timeout_s` seconds after its start.

        Returns:
            Seconds from start to ready; 0 where it was ready before, however long ago it started.

        Raises:
            RolloutError: it ended, or is not ready in time; with its last log lines.
        """
        if self._ready and self.alive():
            return 0.0
        deadline, last = self._started + self.layout.start_timeout_s, "nothing"
        with self._http(timeout_s=5.0) as http:
            while True:
                if not self.alive():
                    raise RolloutError(self._story(f"ended with code {self._process.returncode} while starting"))
                if time.monotonic() > deadline:
                    self._end(grace_s=STOP_GRACE_S)
                    limit = f"{self.layout.start_timeout_s:g} s (rollout.start_timeout_s)"
                    raise RolloutError(self._story(f"was not ready after {limit}; asked for /health: {last}"))
                try:
                    if http.get("/health").status_code == httpx.codes.OK:
                        self._check_ranks(http)
                        http.post("/update_weight_version", json={"new_version": "0"}).raise_for_status()
                        self._ready = True
                        return time.monotonic() - self._started
                except httpx.HTTPError as error:
                    last = f"{type(error).__name__}: {error}"
                time.sleep(0.1)

    def _check_ranks(self, http: httpx.Client) -> None:
        """Raises RolloutError where it has another number of ranks than weights will be sent to."""
        found = http.get("/get_world_size").raise_for_status().json()["world_size"]
        if found != self.world_size:
            layout = self.layout
            self._end(grace_s=STOP_GRACE_S)
            raise RolloutError(
                f"the vLLM server at {self.url} has {found} rank(s), and cluster.rollout.tp = {layout.tp} x dp = "
                f"{layout.dp} make {self.world_size}, to which weights would be sent: another server may have "
                "answered at that port (rollout.port), or this vLLM lays itself out otherwise"
            )

    def _story(self, what: str, num_lines: int = 30) -> str:
        """What happened, and the end of this start's log."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        last = "\n  ".join(lines[-num_lines:]) or "(nothing)"
        why = f": {cause}" if (cause := cause_in("\n".join(lines))) else ""
        return f"the vLLM server at {self.url} {what}{why}. The end of its log {self.log_file}:\n  {last}"

    def cause(self) -> str | None:
        """The error at which this start's engine failed, as its log has it; None where it has none."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return cause_in(log.read().decode(errors="replace"), engine=True)

    def stop(self) -> None:
        """End all processes of the server, for good; at once if they are gone already."""
        self._ended_for_good = True
        self._end(grace_s=STOP_GRACE_S)

    def _end(self, *, grace_s: float) -> None:
        with self._processes:
            atexit.unregister(self.stop)
            if isinstance(self._process, OrderedServer):
                self._process.end(grace_s=grace_s)
            else:
                process.stop_group(self._process, grace_s=grace_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_PROCESS = r"(?:\((?P<process>\w+) pid=\d+\) )?"
"""Before a line of a log: which of the server's processes wrote it."""
_LEVEL = r"(?:ERROR [\d-]+ [\d:]+ \[[^]]+\] )?"
_RAISED = re.compile(rf"^{_PROCESS}{_LEVEL}(?P<error>(?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)\s*$", re.MULTILINE)
"""The last line of a traceback."""


def cause_in(log: str, *, engine: bool = False) -> str | None:
    """The error that a vLLM log ends with: the engine's own, not what the server before it made of its death.

    Args:
        engine: the engine's or none.
    """
    raised = [m for m in _RAISED.finditer(log) if "EngineDeadError" not in m["error"]]
    own = [m for m in raised if m["process"] != "APIServer"]
    found = own if own or engine else raised
    return found[-1]["error"] if found else None
