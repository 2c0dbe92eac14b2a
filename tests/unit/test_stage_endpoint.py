"""An evaluation at an endpoint: a real HTTP server answers, and no engine, tokenizer or tensor library is here."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, fails, sends
from one_pool import this_process_pool

from r1mega.config.cluster import Cluster
from r1mega.errors import ConfigError, EndpointError, EndpointLostError
from r1mega.evaluation import results
from r1mega.preflight.look import look
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.load import load_recipe
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir

ROOT = Path(__file__).parents[2]
KEY, CLUSTER = "sk-not-to-be-seen", Cluster(device="cpu")
CONFIG = """
stage = "evaluate"
sampling = { max_new_tokens = 50 }

[evaluation]
every_steps = 1
samples_per_question = 4

[[evaluation.questions]]
kind = "reasoning_gym"
family = "chain_sum"
params = { min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 1 }
num = 6

[endpoint]
url = "URL"
model = "m"
api_key_env = "A_KEY"
user = "{question} Answer within <answer> tags."
first_wait_s = 0.01
longest_wait_s = 0.02
"""


def solve(body: dict[str, Any]) -> str:
    """Right where the seed is even, and greedily."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    sums = re.findall(r"(-?\d+(?: [+-] \d+)+) =", text)
    right = body["temperature"] == 0 or body["seed"] % 2 == 0
    return f"<think>{sums[-1]}</think><answer>{eval(sums[-1]) + (0 if right else 1)}</answer>"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("A_KEY", KEY)
    with EndpointServer(solve) as server:
        yield server


def write(folder: Path, server: EndpointServer) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "eval.toml").write_text(CONFIG.replace("URL", server.url))
    return folder / "eval.toml"


def evaluate(config: Path, folder: Path, *overrides: str, resume: bool = False) -> tuple[results.Record, list[Any]]:
    """The stage, in this process; what it leaves."""
    from r1mega.stages import evaluate

    recipe = load_recipe(config, overrides)
    assert isinstance(recipe, Evaluate)
    run_dir = RunDir(folder, recipe, CLUSTER, resume=resume)
    try:
        evaluate.run(recipe, CLUSTER, run_dir, pool=this_process_pool)
    finally:
        run_dir.close()
    return results.read(folder)


def summary(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k != "seconds"}


def test_an_evaluation_runs_without_torch_vllm_and_megatron(server: EndpointServer, tmp_path: Path):
    """The command, in a process in which to import one of them is an error; and what comes of it, counted here."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'vllm', 'megatron', 'transformers', 'tokenizers'):\n"
        "            raise ImportError(f'{name} is not for this test')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    assert (
        subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True).returncode == 1
    )
    command = [sys.executable, "-m", "r1mega.cli", "run", str(write(tmp_path, server)), "--run-dir", "run"]
    cluster = str(ROOT / "configs/cluster/laptop.toml")
    done = subprocess.run(
        [*command, "--cluster", cluster], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "its report cannot be made" not in done.stderr and (tmp_path / "run/report.html").is_file()
    assert "30 requests sent, 30 answered" in done.stderr
    sampled = [body for body in server.bodies if body["temperature"]]
    assert {(b["temperature"], b["top_p"], b["max_tokens"], b["n"]) for b in sampled} == {(0.6, 0.95, 50, 1)}
    assert len(sampled) == 24 and len({body["seed"] for body in sampled}) == 24
    record, rows = results.read(tmp_path / "run")
    num_right = sum(body["seed"] % 2 == 0 for body in sampled)
    assert 0 < num_right < 24 and record.scores["pass_at_1"]["mean"] == pytest.approx(num_right / 24)
    assert [len(row.samples) for row in rows] == [4] * 6 and {s.tokens for r in rows for s in r.samples} >= {3}
    assert summary(tmp_path / "run")["eval"]["greedy_after"]["strict"]["mean"] == 1.0
    assert record.of == {"endpoint": server.url, "model": "m"} and record.sampling["temperature"] == 0.6
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(written) > 8 and not any(KEY.encode() in file.read_bytes() for file in written)
    assert KEY not in done.stdout + done.stderr
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_messages_are_what_the_config_says(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    evaluate(config, tmp_path / "run", "endpoint.system=Think first.", "evaluation.questions.0.num=1")
    (question,) = (
        json.loads(line)["question"] for line in (tmp_path / "run/held_out.jsonl").read_text().splitlines()
    )
    assert server.bodies[0]["path"] == "/v1/chat/completions"
    assert server.bodies[0]["messages"] == [
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": f"{question} Answer within <answer> tags."},
    ]


def test_fields_that_a_server_refuses_can_be_left_out(server: EndpointServer, tmp_path: Path):
    fields = ("endpoint.seeds=false", "endpoint.length_field=max_completion_tokens", "evaluation.questions.0.num=1")
    server.say = lambda body: "<answer>2</answer>"
    evaluate(write(tmp_path, server), tmp_path / "run", *fields)
    assert len(server.bodies) == 5
    for body in server.bodies:
        assert body["max_completion_tokens"] == 50 and not {"seed", "max_tokens"} & body.keys()


def test_completions_are_sent_the_template(server: EndpointServer, tmp_path: Path):
    config = tmp_path / "eval.toml"
    config.write_text(write(tmp_path, server).read_text().replace("user = ", "# "))
    settings = ("endpoint.form=completions", "prompt.template=r1_zero", "prompt.prefill=<think>")
    evaluate(config, tmp_path / "run", *settings, "evaluation.questions.0.num=1")
    (question,) = (
        json.loads(line)["question"] for line in (tmp_path / "run/held_out.jsonl").read_text().splitlines()
    )
    sent = server.bodies[0]
    assert sent["path"] == "/v1/completions" and sent["prompt"].startswith(
        "A conversation between User and Assistant."
    )
    assert sent["prompt"].endswith(f" User: {question}. Assistant:<think>")


def test_what_fails_in_the_middle_is_kept_and_goes_on(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    whole = evaluate(config, tmp_path / "whole", "endpoint.concurrency=1")
    asked = [(b["messages"], b["seed"], b["temperature"]) for b in server.bodies]
    server.bodies.clear()
    server.faults = [*[lambda h: answer(server, h)] * 5, *[fails(503)] * 3]
    with pytest.raises(EndpointLostError, match=r"answered 503.*continue with --resume") as stopped:
        evaluate(config, tmp_path / "run", "endpoint.concurrency=1", "endpoint.attempts=3")
    assert stopped.value.exit_code == 75 and len(server.bodies) == 8
    server.bodies[5:] = []
    assert evaluate(config, tmp_path / "run", resume=True) == whole
    again = [(b["messages"], b["seed"], b["temperature"]) for b in server.bodies]
    assert len(again) == 30 and sorted(map(str, again)) == sorted(map(str, asked))
    assert summary(tmp_path / "run") == {**summary(tmp_path / "whole"), "replayed_answers": 5}


def answer(server: EndpointServer, handler: Any) -> None:
    from endpoint_server import reply

    reply(handler, server.answer(handler.body, handler.path))


def test_a_signal_breaks_off_at_once(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    server.faults = [*[lambda h: answer(server, h)] * 5, lambda h: os.kill(os.getpid(), signal.SIGTERM)]
    with pytest.raises(Interrupted, match="continue with --resume"):
        evaluate(config, tmp_path / "run", "endpoint.concurrency=1")
    server.bodies.clear()
    evaluate(config, tmp_path / "run", resume=True)
    assert len(server.bodies) == 25


def test_a_budget_stops_the_run_and_another_start_has_another(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    with pytest.raises(EndpointError, match=r"budget_requests = 20 is used up: 20.*continue with --resume"):
        evaluate(config, tmp_path / "run", "endpoint.budget_requests=20")
    evaluate(config, tmp_path / "run", "endpoint.budget_requests=20", resume=True)
    assert len(server.bodies) == 30


def test_answers_of_another_model_are_not_used(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    first, _ = evaluate(config, tmp_path / "run")
    others = ("endpoint.model=other", "endpoint.extra={top_k=20}", "sampling.top_p=0.9", "endpoint.system=Think.")
    for i, other in enumerate(others):
        folder = tmp_path / f"run_{i}"
        folder.mkdir()
        (folder / "journal").mkdir()
        for file in (tmp_path / "run/journal").iterdir():
            (folder / "journal" / file.name).write_bytes(file.read_bytes())
        server.bodies.clear()
        record, _ = evaluate(config, folder, other)
        assert len(server.bodies) == (24 if "top_p" in other else 30), other  # greedily it is of no consequence
        assert (record.digests["weights"] != first.digests["weights"]) == ("model" in other or "extra" in other)
        assert (record.digests["prompt"] != first.digests["prompt"]) == ("system" in other)
        assert (record.digests["sampling"] != first.digests["sampling"]) == ("top_p" in other or "extra" in other)


def test_cut_answers_are_truncated(server: EndpointServer, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cut = {"index": 0, "finish_reason": "length", "message": {"content": "<think>1"}}
    server.faults = [sends(json.dumps({"choices": [cut], "usage": {"completion_tokens": 49}}).encode())]
    with caplog.at_level("INFO", logger="r1mega"):
        _, rows = evaluate(write(tmp_path, server), tmp_path / "run", "endpoint.concurrency=1")
    assert next((s.finish, s.tokens, s.value) for s in rows[0].samples) == ("length", 49, 0.0)
    assert "1 answers were cut by the server before sampling.max_new_tokens" in caplog.text


def test_an_answer_without_its_length_is_refused(server: EndpointServer, tmp_path: Path):
    server.faults = [sends(b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "2"}}]}')]
    with pytest.raises(EndpointError, match="counts no tokens"):
        evaluate(write(tmp_path, server), tmp_path / "run")


def test_stop_strings_need_a_server_that_tells_them(server: EndpointServer, tmp_path: Path):
    config, stop = write(tmp_path, server), 'sampling.stop=["</answer>"]'
    with pytest.raises(EndpointError, match="does not say which of the stop strings"):
        evaluate(config, tmp_path / "run", stop)
    ended = {"index": 0, "finish_reason": "stop", "stop_reason": "</answer>"}
    said = {**ended, "message": {"content": "<think>1</think><answer>2"}}
    server.faults = [sends(json.dumps({"choices": [said], "usage": {"completion_tokens": 9}}).encode())] * 5
    evaluate(config, tmp_path / "other", stop, "evaluation.questions.0.num=1")
    (line, *_) = (tmp_path / "other/journal/version_0.jsonl").read_text().splitlines()
    assert json.loads(line)["answers"][0]["text"] == "<think>1</think><answer>2</answer>"
    assert server.bodies[-1]["stop"] == ["</answer>"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.path=/nowhere", "model: the endpoint answers, and no folder of ours"),
        ("endpoint.form=completions", 'endpoint: system and user are of form = "chat"'),
        ("prompt.prefill=<think>", "prompt: the server puts a question of form"),
        ("endpoint.user=Hello.", "{question} is not in it"),
        ("endpoint.ur=x", "did you mean 'url'"),
        ("evaluation.questions.0.family=chain_sums", "did you mean 'chain_sum'"),
    ],
)
def test_what_is_wrong_with_a_config(override: str, said: str, server: EndpointServer, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(said)):
        look(write(tmp_path, server), str(ROOT / "configs/cluster/laptop.toml"), [override])


def test_a_key_that_is_not_set_is_missed_before_the_start(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, cluster = write(tmp_path, server), str(ROOT / "configs/cluster/laptop.toml")
    assert look(config, cluster).absent == ()
    monkeypatch.delenv("A_KEY")
    seen = look(config, cluster)
    with pytest.raises(ConfigError, match=r"endpoint\.api_key_env: the environment variable A_KEY is not set"):
        seen.refuse_absent()


OWN = """
stage = "evaluate"
sampling = { max_new_tokens = 50 }

[evaluation]
every_steps = 1
samples_per_question = 3

[[evaluation.questions]]
kind = "jsonl"
path = "own.jsonl"
verifier = "math"

[endpoint]
url = "URL"
model = "m"
"""
SAID = [
    {"content": r"So it is \boxed{\frac12}."},
    {"content": "It is <answer>0.5</answer>", "reasoning_content": "1/2"},
    {"content": "<think>1/2</think><answer>1/2</answer>"},
    {"content": r"<think>1/2</think> It is \boxed{0.7}."},
]


@pytest.mark.parametrize(
    ("form", "right"), [(None, [1, 1, 1, 0]), ("any", [1, 1, 1, 0]), ("r1", [0, 1, 1, 0]), ("r1_zero", [0, 0, 1, 0])]
)
def test_what_a_right_answer_looks_like(form: str | None, right: list[int], server: EndpointServer, tmp_path: Path):
    """An own question of mathematics, whose truth is 1/2, and answers as chat models and servers write them."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "What is half of one?", "truth": "1/2"}) + "\n")
    (tmp_path / "eval.toml").write_text(OWN.replace("URL", server.url))
    for said in SAID:
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        server.faults.append(sends(json.dumps({"choices": [choice], "usage": {"completion_tokens": 9}}).encode()))
    server.say = lambda body: "I do not know."
    overrides = ["evaluation.samples_per_question=4", "endpoint.concurrency=1"]
    overrides += [f"evaluation.format={form}"] if form else []
    record, (row,) = evaluate(tmp_path / "eval.toml", tmp_path / "run", *overrides)
    assert [sample.value for sample in row.samples] == right
    assert record.sampling["format"] == (form or "any")
    (votes,) = (at for at in record.scores["cons_at_k"] if at["k"] == 4)
    assert votes["interval"]["mean"] == 1.0  # a half in however many ways outvotes 0.7
