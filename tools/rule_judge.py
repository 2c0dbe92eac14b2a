"""An OpenAI-compatible server that judges by rule, and not by a model: for tests, and where no model can judge.

python tools/rule_judge.py [--port 8100] [--rule constraints] [--seed 0] [--position-bias P] [--length-bias P]
                           [--malformed P] [--noise P] [--delay S] [--dies-after N] [--hangs-after N]
                           [-- COMMAND ...]

With a COMMAND it serves for as long as that runs, and ends with its exit code.

It reads the frames of r1mega's judge prompts (question, reference answer, answers) and ends its reply with the
verdict that the prompt asks for. Numbers that rest on it are a rule's, and say so: its model is called "rule-judge".

Rules: constraints, how many constraints of a prompt of the constraint language an answer meets, or whether it harms
(`r1mega.rewards.constraints`); equal, whether an answer is the reference's text; longer, by length alone (of pairs).
Asked whether an answer is safe, it is safe where all of it is harmless, whatever the rule.

Faults are planted: with probability P a request is judged for the answer that is shown first (--position-bias), or
for the longer one (--length-bias), or by a coin (--noise), or gets a reply without a verdict (--malformed). All of it
follows from --seed and the request's content, in whatever order requests come. Every request may take so long
(--delay); after N requests the server ends (--dies-after) or answers no more (--hangs-after).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

try:
    from r1mega.data.constraint_language import constraints_in
    from r1mega.data.scope import scoped
    from r1mega.rewards.constraints import is_harmless, preference, share
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"rule_judge: {said}", file=sys.stderr)
    sys.exit(2)

MODEL = "rule-judge"
ANSWER = "model's answer"
Texts = Mapping[str, str]
"""What stands in the frames of a prompt, by what they are called: "question", "reference answer", "model's answer",
"answer A", "answer B"."""


@dataclass(frozen=True)
class Rule:
    """How it is judged without any fault."""

    share: Callable[[Texts], float]
    """How good the one answer is, from 0 to 1."""
    gap: Callable[[Texts], float]
    """How much better answer A is than answer B: 2 and more is much, above 0 somewhat."""


def _constraints_share(texts: Texts) -> float:
    asked = constraints_in(texts["question"])
    if asked is None:
        return 0.0
    answer = texts[ANSWER]
    return float(is_harmless(answer)) if asked.harmful else share(asked, scoped(answer, "summary") or "")


def _constraints_gap(texts: Texts) -> float:
    try:
        return preference(texts["question"], texts["answer A"], texts["answer B"])
    except ValueError:  # no prompt of the language
        return 0.0


def _equal(texts: Texts) -> float:
    return float(texts[ANSWER].split() == texts.get("reference answer", "").split())


def _longer(texts: Texts) -> float:
    return float(len(texts["answer A"]) - len(texts["answer B"]))


RULES: Mapping[str, Rule] = {
    "constraints": Rule(_constraints_share, _constraints_gap),
    "equal": Rule(_equal, lambda texts: 0.0),
    "longer": Rule(lambda texts: 0.0, _longer),
}


@dataclass(frozen=True)
class Faults:
    """What is planted; probabilities are of each request by itself."""

    position_bias: float = 0.0
    length_bias: float = 0.0
    noise: float = 0.0
    malformed: float = 0.0
    delay_s: float = 0.0
    dies_after: int | None = None
    hangs_after: int | None = None


@dataclass
class RuleJudge:
    """Judges conversations; `answer` is the server's without its sockets."""

    rule: Rule
    faults: Faults = Faults()
    seed: int = 0
    asked: int = 0
    """Requests so far."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: Mapping[str, Any]) -> str:
        """The reply to a request for a chat completion."""
        content = json.dumps([self.seed, body.get("messages"), body.get("seed")], sort_keys=True)
        rng = random.Random(hashlib.sha256(content.encode()).hexdigest())
        drawn = {name: rng.random() for name in ("malformed", "position", "length", "noise")}
        said = "\n".join(str(turn.get("content", "")) for turn in body.get("messages", ()))
        texts = framed(str(body["messages"][-1]["content"]))
        if drawn["malformed"] < self.faults.malformed:
            return rng.choice(["I would rather not say.", "", "Both have their points, [[A]] and [[B]].", said[:200]])
        if "answer A" not in texts and "[[unsafe]]" in said:
            return f"By rule.\n{'[[safe]]' if is_harmless(texts.get(ANSWER, '')) else '[[unsafe]]'}"
        if "answer A" not in texts:
            good = self.rule.share(texts) if ANSWER in texts else 0.0
            good = float(rng.random() < 0.5) if drawn["noise"] < self.faults.noise else good
            return f"By rule.\n{_single(said, good)}"
        gap = self.rule.gap(texts)
        if drawn["position"] < self.faults.position_bias:
            gap = 2.0
        elif drawn["length"] < self.faults.length_bias:
            longer = len(texts["answer A"]) - len(texts["answer B"])
            gap = 2.0 if longer > 0 else -2.0 if longer < 0 else 0.0
        elif drawn["noise"] < self.faults.noise:
            gap = rng.choice([2.0, -2.0])
        return f"By rule.\n{_pair(said, gap)}"


def _single(said: str, good: float) -> str:
    if "[[right]]" in said:
        return "[[right]]" if good == 1 else "[[wrong]]"
    return f"[[{round(10 * good)}]]"


def _pair(said: str, gap: float) -> str:
    if "[[A>>B]]" in said:
        sign = "A>B" if gap > 0 else "B>A" if gap < 0 else "A=B"
        return f"[[{sign.replace('>', '>>') if abs(gap) >= 2 else sign}]]"
    better = max(-9, min(9, round(gap * 2)))
    return f"[[A: {max(1, 1 + better)}, B: {max(1, 1 - better)}]]"


FRAME = re.compile(
    r"=== (?P<name>[^\n]+) begins (?P<mark>[0-9a-f]{12}) ===\n(?P<text>.*?)\n=== (?P=name) ends (?P=mark) ===", re.S
)


def framed(content: str) -> dict[str, str]:
    """What stands in the frames of a prompt; the first one's mark is all frames'."""
    found = list(FRAME.finditer(content))
    return {frame["name"]: frame["text"] for frame in found if frame["mark"] == found[0]["mark"]}


# ---- the server ----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Speaks OpenAI's chat completions. `die` is what happens after `dies_after` requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, judge: RuleJudge, port: int = 0, die: Callable[[], None] = lambda: os._exit(1)) -> None:
        self.judge, self.die = judge, die
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        judge = self.server.judge
        with judge.lock:
            judge.asked += 1
            number = judge.asked
        faults = judge.faults
        if faults.dies_after is not None and number > faults.dies_after:
            self.server.die()
            self.close_connection = True
            return
        if faults.hangs_after is not None and number > faults.hangs_after:
            self.server.ended.wait()
            self.close_connection = True
            return
        time.sleep(faults.delay_s)
        try:
            body = json.loads(raw)
            said = judge.answer(body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self._send(400, {"error": {"message": f"not a chat completion: {type(error).__name__}: {error}"}})
            return
        if not self.path.endswith("/chat/completions"):
            self._send(404, {"error": {"message": "only /v1/chat/completions is there"}})
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": len(raw) // 4, "completion_tokens": len(said.split())}
        self._send(200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


def serve_while(server: Server, command: Sequence[str]) -> int:
    """Serve until a command has ended; its exit code, as a shell gives it. SIGTERM is passed on; Ctrl-C comes to the
    command by itself."""
    with server:
        try:
            child = subprocess.Popen(command)
        except OSError as error:
            print(f"rule_judge: {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
        code = child.wait()
    return code if code >= 0 else 128 - code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8100, help="0: any that is free")
    parser.add_argument("--rule", choices=RULES, default="constraints")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("position-bias", "length-bias", "noise", "malformed"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="P")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", dest="delay_s")
    parser.add_argument("--dies-after", type=int, metavar="N")
    parser.add_argument("--hangs-after", type=int, metavar="N")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="serve while it runs")
    given = vars(parser.parse_args())
    command = given.pop("command")
    port, rule, seed = given.pop("port"), given.pop("rule"), given.pop("seed")
    try:
        server = Server(RuleJudge(RULES[rule], Faults(**given), seed), port)
    except OSError as error:
        print(f"rule_judge: port {port}: {error.strerror}; take another --port, or 0 for any", file=sys.stderr)
        sys.exit(2)
    print(f"{MODEL} ({rule}) at {server.url}", flush=True)
    if command:
        sys.exit(serve_while(server, command))
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever(0.1)


if __name__ == "__main__":
    main()
