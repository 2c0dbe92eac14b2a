"""The live page's server: what it answers, to whom, and what it refuses; and that nothing hostile gets through it."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watched_runs import HOSTILE, NOW, answer, event, train_row, write_lines, write_stage

from r1mega.errors import ConfigError
from r1mega.report.live import watcher as watchers
from r1mega.report.live.server import HEADERS, LivePage
from r1mega.report.live.watcher import Watcher


def asked(page: LivePage, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request as it stands: status, headers by their lower-case names, body."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall(request if isinstance(request, bytes) else request.encode())
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        data = b""
        while part := connection.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def get(page: LivePage, name: str = "", host: str = "127.0.0.1", method: str = "GET") -> tuple[int, dict, bytes]:
    return asked(page, f"{method} /{page.key}/{name} HTTP/1.1\r\nHost: {host}:{page.port}\r\n\r\n")


def state(page: LivePage, **query: object) -> dict:
    words = "&".join(f"{name}={value}" for name, value in query.items())
    code, headers, body = get(page, f"state.json?{words}")
    assert code == 200 and headers["content-type"] == "application/json; charset=utf-8"
    return json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_stage(tmp_path / "run", [train_row(step) for step in range(1, 11)], written=NOW - 5)


@pytest.fixture
def page(run: Path) -> Iterator[LivePage]:
    served = LivePage(Watcher(run, clock=lambda: NOW))
    yield served
    served.close()


def test_the_page_its_style_and_its_script_are_served_with_their_policy(page: LivePage):
    for name, kind in (
        ("", "text/html"),
        ("watch.css", "text/css"),
        *((n, "text/javascript") for n in ("watch.js", "plot.js")),
    ):
        code, headers, body = get(page, name)
        assert code == 200 and headers["content-type"] == f"{kind}; charset=utf-8"
        assert len(body) == int(headers["content-length"]) > 1000
        for header, value in HEADERS.items():
            assert headers[header.lower()] == value
        code, headers, body = get(page, name, method="HEAD")
        assert code == 200 and body == b"" and int(headers["content-length"]) > 1000
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_pages_script_makes_no_html_of_a_string():
    folder = Path(watchers.__file__).parent
    script = "".join(file.read_text() for file in sorted(folder.glob("*.js")))
    html = (folder / "watch.html").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert word not in script
    for word in ("<style", "style=", "onclick", "onload", "javascript:", "http:", "https:", "//"):
        assert word not in html.replace('src="watch.js"', "")
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")  # the name of SVG's elements, no address


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"])
def test_nothing_but_get_and_head_is_answered(page: LivePage, method: str):
    code, headers, body = get(page, "state.json", method=method)
    assert code == 405 and headers["allow"] == "GET, HEAD" and b"Method Not Allowed" in body
    assert method.encode() not in body


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "[::1", "a@127.0.0.1",
     "127.0.0.1 evil", "", "2130706433", "127.0.0.1:80:"],
)  # fmt: skip
def test_a_name_that_was_bound_anew_is_refused(page: LivePage, host: str):
    code, _, body = get(page, "state.json", host=host)
    assert code == 403 and body == b"403 Forbidden\n"


def test_this_machine_may_be_called_by_its_names_and_through_a_tunnel(page: LivePage):
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert get(page, host=host)[0] == 200
    key = page.key
    assert asked(page, f"GET /{key}/ HTTP/1.1\r\nHost: localhost:9999\r\n\r\n")[0] == 200  # ssh -L 9999:...
    assert asked(page, f"GET /{key}/ HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
    assert asked(page, f"GET /{key}/ HTTP/1.0\r\n\r\n")[0] == 403
    two = "Host: localhost\r\nHost: evil.example\r\n"
    assert asked(page, f"GET /{key}/ HTTP/1.1\r\n{two}\r\n")[0] == 403


@pytest.mark.parametrize(
    "path",
    ["", "/", "/state.json", "//state.json", "/KEY", "/KEYx/", "/KEY/../KEY/run.json", "/KEY/config.json",
     "/KEY//etc/passwd", "/KEY/..%2f..%2fetc/passwd",
     "/KEY/watch.js/", "/KEY/watch.py", "/KEY/./", "/KEY/%77atch.js", "/KEY/watch.js%00",
     "http://127.0.0.1/KEY/", "KEY/", "/\u212a/"],
)  # fmt: skip
def test_a_path_is_looked_up_in_a_table_and_needs_the_key(page: LivePage, path: str):
    """Also what would name a file, one of the run's or of the package's."""
    target = path.replace("KEY", page.key) or "*"
    code, headers, body = asked(page, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert code == 404 and body == b"404 Not Found\n"
    assert headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "request_",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n",
     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
     b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_the_next_one_answered(page: LivePage, request_: bytes):
    with contextlib.suppress(ConnectionError, IndexError, ValueError):
        code, _, body = asked(page, request_)
        assert 400 <= code < 600 and b"aaaa" not in body
    assert get(page)[0] == 200


def test_a_client_that_says_nothing_keeps_nobody_waiting(page: LivePage):
    with socket.create_connection(("127.0.0.1", page.port)):
        assert get(page)[0] == 200


def test_the_page_asks_for_what_came_since(page: LivePage, run: Path):
    first = state(page)
    curve = curves(first)["train:loss"]
    assert first["feed"]["whole"] and curve["from"] == 0 and len(curve["points"]) == 10
    have = {"version": first["feed"]["version"], "at": first["feed"]["at"], "answers": first["answers"]["id"]}
    assert have["at"] == (run / "metrics.jsonl").stat().st_size
    second = state(page, **have)
    assert not second["feed"]["whole"] and curves(second)["train:loss"]["points"] == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_row(11)) + "\n")
    third = state(page, **have)
    assert curves(third)["train:loss"] | {"points": [[11, 0.090909]], "from": 10} == curves(third)["train:loss"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_row(5)) + "\n")
    fourth = state(page, **have)
    assert fourth["feed"]["whole"] and [x for x, _ in curves(fourth)["train:loss"]["points"]] == [1, 2, 3, 4, 5]
    assert fourth["feed"]["rollbacks"] == 1


def curves(view: dict) -> dict[str, dict]:
    return {curve["id"]: curve for figure in view["feed"]["figures"] for curve in figure["curves"]}


@pytest.mark.parametrize("at", ["-1", "1e9", "9" * 400, "٣", "0x10", "", "99999999"])
def test_an_offset_that_is_none_is_answered_with_everything(page: LivePage, at: str):
    version = state(page)["feed"]["version"]
    view = state(page, version=version, at=at.encode().hex() if not at.isascii() else at)
    assert len(curves(view)["train:loss"]["points"]) == 10


def test_a_stage_is_chosen_by_its_name_and_no_path(tmp_path: Path):
    write_stage(tmp_path / "outside", [train_row(1)], kind="sft", written=NOW)
    chain = tmp_path / "chain"
    for name, kind in (("base", "pretrain"), ("rl", "grpo")):
        write_stage(chain / name, [train_row(1)], kind=kind, written=NOW - 5, started=f"2026-09-21T0{len(name)}:00")
    watcher = Watcher(chain, clock=lambda: NOW)
    assert watcher.view(stage="base")["stage"] == "base"
    for name in ("../outside", "rl/../../outside", "", "none", str(tmp_path / "outside")):
        assert watcher.view(stage=name)["stage"] in ("rl", "base")
    assert [stage["kind"] for stage in watcher.view()["status"]["stages"]] == ["grpo", "pretrain"]


def test_a_run_that_begins_later_is_seen(tmp_path: Path):
    now = [NOW]
    watcher = Watcher(tmp_path / "later", clock=lambda: now[0])
    view = watcher.view()
    assert view["status"]["state"] == "waiting" and view["feed"] is None
    write_stage(tmp_path / "later", [train_row(1)], written=NOW)
    now[0] += watchers.LOOK_S
    assert watcher.view()["status"]["state"] == "running" and curves(watcher.view())["train:loss"]["points"]


def test_a_hostile_run_stays_text_of_bounded_length(run: Path, page: LivePage):
    """In every place where a run's own words are shown; and numbers that are none are no JSON."""
    samples = [answer(HOSTILE, HOSTILE), answer("long", "x" * 10_000_000 + HOSTILE), answer("\ud800", "\ud800\x00")]
    write_lines(
        run / "samples/step_2.jsonl", [*samples, {"question": 3, "text": None, "parts": "no table", "tokens": []}]
    )
    write_lines(run / "events.jsonl", [event(HOSTILE, NOW - 9, HOSTILE), event("crashed", float("nan"), HOSTILE)])
    (run / "logs/rank_1.log").write_text(f"ERROR {HOSTILE}\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 11, "loss": Infinity, "grad_norm": NaN, "seconds/<script>": 1.0}\n')
        file.write(
            '{"kind": "train", "step": NaN}\n{"kind": ["train"], "step": 12}\n{"kind": "train", "step": 1e999}\n'
        )
    view = state(page)
    text = json.dumps(view, ensure_ascii=False)
    for character in "\x1b\x07\u202e\u202c\x00":
        assert character not in text
    assert "\\\\x1b[31m" in text and "<script>" in text and len(text) < 200_000
    shown = "".join(part for _, part in view["answers"]["rows"][1]["text"])
    assert "characters left out" in shown and len(shown) < 5000
    assert len(view["answers"]["rows"]) == 4
    assert any(figure["id"] == "phases" for figure in view["feed"]["figures"])


def test_answers_are_sent_once(run: Path, page: LivePage):
    write_lines(run / "samples/step_2.jsonl", [answer("q", "old")])
    first = state(page)["answers"]
    assert [row["step"] for row in first["rows"]] == [2] and not first["same"]
    assert state(page, answers=first["id"])["answers"] == {"id": first["id"], "same": True, "rows": []}
    write_lines(run / "samples/step_10.jsonl", [answer("q", "new")])
    second = state(page, answers=first["id"])["answers"]
    assert "".join(part for _, part in second["rows"][0]["text"]) == "new"


def test_a_fault_within_is_told_and_the_next_look_goes_on(page: LivePage, run: Path):
    config = run / "config.json"
    config.unlink()
    config.mkdir()
    assert any("config.json" in fault for fault in state(page)["status"]["faults"])
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert state(page)["feed"]["faults"]


def test_several_pages_may_be_open(page: LivePage):
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(len(curves(state(page))))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1


def test_only_this_machine_reaches_it_and_a_port_in_use_is_refused(page: LivePage, run: Path):
    assert page._server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match=rf"--port {page.port}: .* cannot be had .* leave --port out"):
        LivePage(Watcher(run), page.port)
    other = LivePage(Watcher(run))
    assert other.key != page.key and len(other.key) >= 20
    other.close()
