"""What `check` says of a stage that makes preference data, before anybody is asked; and a folder that answers."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from endpoint_server import EndpointServer
from grpo_run import base
from preference_run import CLUSTER, CONFIG, NUM_ASKED, NUM_QUESTIONS, judge, made, quality, rows, run, say, write

from r1mega.buffers import Float32s, Int32s
from r1mega.config.inputs import maker_of, makers
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError, DataError
from r1mega.preflight.look import look
from r1mega.recipe.load import load, load_recipe
from r1mega.recipe.preferences import MakePreferences
from r1mega.report import preferences as report
from r1mega.report import show
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason
from r1mega.weights.folder import GiveFolder

__all__ = ["base"]  # a fixture

ROOT = Path(__file__).parents[2]
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EndpointServer]:
    monkeypatch.setenv("A_KEY", "k")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with EndpointServer(say) as server:
        yield server


def test_a_look_asks_nobody_and_misses_the_judges_key(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = write(tmp_path, server)
    assert look(config, LAPTOP).absent == ()
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ConfigError, match=r"judge\.endpoint\.api_key_env: the environment variable A_KEY is not set"):
        look(config, LAPTOP).refuse_absent()
    assert server.bodies == []


def test_questions_that_cannot_be_read_are_found_before_anybody_is_asked(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    (tmp_path / "own.jsonl").write_text('{"question": "One?"}\n{"qestion": "Two?"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl, line 2"):
        look(config, LAPTOP)
    (tmp_path / "own.jsonl").write_text('{"question": "Question number 17, what do you say?"}\n')  # held out
    with pytest.raises(DataError, match=r"no question of 1 \(1 held out\) is left to be asked: add some"):
        look(config, LAPTOP)
    (tmp_path / "own.jsonl").unlink()
    (absent,) = look(config, LAPTOP).absent
    assert "questions.0.path" in absent and "not there yet" in absent and server.bodies == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judge.endpoint.ur=x", "did you mean 'url'"),
        ("pairs.per_question=3", "pairs.per_question: 3 pairs asked for, and 4 answers make 2 at most"),
        ("answers.per_question=1", "of 1 answer there is no pair"),
        ("questions.0.weight=2", "questions.0.weight: each question is asked alike here"),
        ("label=safety", 'pairs: has no effect with label = "safety"'),
        ("safety.votes=3", 'safety: has no effect with label = "preference"'),
        ("pairs.prompt=Compare.", "{question}, {answer_a}, {answer_b} should stand in it"),
        ("pairs.min_gap=3", 'pairs.min_gap: no gap of form = "verdict" is more than 3; lower it (got 3)'),
        ("pairs.system=Fair.", "pairs.system: neither system nor prompt names a verdict in double brackets"),
        ("model.path=/nowhere", "model: the endpoint answers, and no folder of ours"),
        ("evaluation.every_steps=1", "unknown key"),
    ],
)
def test_what_is_wrong_with_a_config(override: str, said: str, server: EndpointServer, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(said)):
        look(write(tmp_path, server), LAPTOP, [override])


def test_a_judge_there_must_be_one(server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server, CONFIG.replace("[judge.endpoint]", "[judge]\nmax_failed = 0.1\n[other]"))
    with pytest.raises(ConfigError, match="other: unknown key"):
        look(config, LAPTOP)
    config = write(tmp_path, server, CONFIG[: CONFIG.index("[judge.endpoint]")] + "[judge]\nmax_failed = 0.1\n")
    with pytest.raises(ConfigError, match=r"judge: give endpoint \(a server\) or model"):
        look(config, LAPTOP)


def test_what_is_judged_depends_on_the_label():
    for label, scope in (("preference", "summary"), ("safety", "response")):
        text = CONFIG.replace("URL", "http://127.0.0.1:1").replace("[pairs]\nper_question = 2", "")
        text = text.replace('stage = "preferences"', f'stage = "preferences"\nlabel = "{label}"')
        table = tomllib.loads(text)
        recipe = MakePreferences.model_validate(table)
        assert recipe.scope == scope and recipe.faults() == []
        other = MakePreferences.model_validate({**table, "answers": {"scope": "response"}})
        assert other.scope == "response"


@pytest.mark.parametrize(
    ("name", "made", "trained"),
    [("helpful_pairs", "pairs.jsonl", "helpful_rm"), ("harmless_labels", "labelled.jsonl", "harmless_rm")],
)
def test_a_full_size_config_has_the_reports_numbers_and_makes_what_a_reward_model_reads(
    name: str, made: str, trained: str, monkeypatch: pytest.MonkeyPatch
):
    """And is without a fault."""
    monkeypatch.chdir(ROOT)
    config = Path(f"configs/r1/{name}.toml")
    recipe, machine = load(config, "h800_v3")
    assert isinstance(recipe, MakePreferences) and recipe.pairs.votes == recipe.safety.votes == 4
    assert recipe.pairs.min_gap == 1.0 and recipe.leaves() == (made,)
    assert recipe.faults_on(machine, None) == []
    assert makers(config)["model.path"] == maker_of(Path("runs/r1/4_sft_800k/hf").resolve())
    reads = {given.setting: given.path for given in load_recipe(Path(f"configs/r1/{trained}.toml")).inputs()}
    command = f"r1mega run {config} --cluster h800_v3"
    assert reads["data.files"] == ROOT / f"runs/r1/{name}/{made}"
    assert maker_of(reads["data.files"]) == makers(Path(f"configs/r1/{trained}.toml"))["data.files"] == command


# ---- a folder answers ----------------------------------------------------------------------------------------------


class Folder:
    """What `rollout.served.ServedModel` does: answers of a quality that follows from prompt and seed."""

    def __init__(self, server: EndpointServer) -> None:
        self.server, self.asked, self.made = server, list[Any](), dict[str, Any]()
        self.judged_while_it_ran = -1

    def serve(self, model_dir: Path, layout: Any, **options: Any) -> Any:
        self.made = {"model_dir": model_dir, **options}
        return self

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        self.judged_while_it_ran = len(self.server.bodies)

    def generate(self, requests: Any, params: Any, *, version: int, on_answer: Any) -> None:
        for place, request in enumerate(requests):
            self.asked.append(SimpleNamespace(request=request, params=params, version=version))
            on_answer(place, tuple(self._answer(request, i) for i in range(request.n)))

    def _answer(self, request: Any, i: int) -> Completion:
        text = f"so</think>Quality {i} {'.' * (5 * i % 7)}" if i else "and on and on"
        ids, logp = Int32s([5, 6]), Float32s([-1.0, -1.0])
        return Completion(request.prompt.id, i, ids, logp, text, FinishReason.STOP, 0, request.seed + i)


@pytest.fixture
def answered(base: Path, server: EndpointServer, tmp_path: Path) -> Any:
    """A run whose answers a folder gives: (settings, folder, run directory)"""
    from r1mega.stages import preferences

    text = CONFIG[: CONFIG.index("[endpoint]")] + CONFIG[CONFIG.index("[judge.endpoint]") :]
    model = f'[model]\npath = "{base}"\n\n[prompt]\ntemplate = "tiny"\nprefill = "<think>"\n'
    write(tmp_path, server, text.replace("max_new_tokens = 50", "max_new_tokens = 12\nstop = ['END']") + model)
    config = load_recipe(tmp_path / "pairs.toml", ["pairs.balance=none", "seed=3"])
    assert isinstance(config, MakePreferences)
    folder, run_dir = Folder(server), RunDir(tmp_path / "run", config, CLUSTER, resume=False)
    try:
        preferences.run(config, CLUSTER, run_dir, serve=folder.serve)
    finally:
        run_dir.close()
    return config, folder, run_dir


def test_a_folder_answers_and_has_ended_before_the_judge_is_asked(answered: Any, base: Path, server: EndpointServer):
    _, folder, run_dir = answered
    assert folder.judged_while_it_ran == 0 < len(server.bodies)
    prompts = [one.request.prompt for one in folder.asked]
    assert len(prompts) == NUM_ASKED == NUM_QUESTIONS - 1 and {one.version for one in folder.asked} == {0}
    assert folder.made["max_model_len"] == max(len(p.token_ids) for p in prompts) + 12
    assert folder.made["model_dir"] == base and folder.made["seed"] == 3
    params = {
        (one.params.temperature, one.params.top_p, one.params.max_new_tokens, one.params.stop) for one in folder.asked
    }
    assert params == {(0.6, 0.95, 12, ("END",))}
    seeds = [one.request.seed + i for one in folder.asked for i in range(one.request.n)]
    assert len(set(seeds)) == len(seeds) == 4 * NUM_ASKED
    assert made(run_dir.path)["left_out"]["no_summary"] == NUM_ASKED  # the prefill opens the thought
    for row in rows(run_dir.path, "pairs.jsonl"):
        assert (quality(row["chosen"]), quality(row["rejected"])) == (3, 1)
        assert row["chosen"].startswith("Quality") and row["provenance"]["policy"]["model"] == str(base)
        assert row["provenance"]["answers"]["chosen"]["index"] == quality(row["chosen"])


def test_a_run_is_shown_in_the_terminal_and_on_its_page(answered: Any, capsys: pytest.CaptureFixture[str]):
    _, _, run_dir = answered
    show.show(run_dir.path)
    said, html = capsys.readouterr().out, (run_dir.path / "report.html").read_text()
    of = json.loads((run_dir.path / "summary.json").read_text())["preference_data"]
    for text in (said, html):
        assert "Preference data" in text and "pairs left out: gap too small" in text
        assert "judge: position bias" in text and "+0.000 (" in text
        assert re.search(rf"pairs judged\D+{of['counts']['pairs judged']}\b", text)
    assert "No evaluation" not in html
    drawn = sorted(path.name for path in (run_dir.path / "figures").iterdir())
    assert drawn == ["pair_gaps.png", "pair_lengths.png"]
    assert "chosen to the right of rejected" in html and "How far apart the judge puts" in html


def test_the_figures_hold_every_decided_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gaps and lengths by hand: three kept, one out of balance, one too near, one unscorable."""
    lines = [
        {"outcome": "kept", "gap": 2.0, "lengths": [10, 20]},
        {"outcome": "kept", "gap": -1.5, "lengths": [30, 40]},
        {"outcome": "kept", "gap": 3.0, "lengths": [50, 50]},
        {"outcome": "unbalanced", "gap": -3.0, "lengths": [60, 700]},
        {"outcome": "gap_too_small", "gap": 0.5, "lengths": [1, 2]},
        {"outcome": "unscorable", "reason": "none", "lengths": [1, 2]},
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = list[Any]()

    class Axes:
        def hist(self, values: Any, *bins: Any, **how: Any) -> None:
            drawn.append((values, how["label"]))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr(report, "new_axes", lambda *_: contextlib.nullcontext(Axes()))
    assert len(report.draw(tmp_path)) == 2
    (gaps, labels), *lengths = drawn
    assert dict(zip(labels, gaps, strict=True)) == {
        "kept": [2.0, 1.5, 3.0], "out of balance": [3.0], "gap too small": [0.5],
    }  # fmt: skip
    assert lengths == [
        ([10, 40, 50, 700], "chosen, before balancing"), ([10, 40, 50], "chosen, kept"),
        ([20, 30, 50, 60], "rejected, before balancing"), ([20, 30, 50], "rejected, kept"),
    ]  # fmt: skip


def test_a_damaged_row_of_judged_pairs_is_one_message(tmp_path: Path):
    (tmp_path / "judged.jsonl").write_text('{"gap": 1.0}\n')
    with pytest.raises(DataError, match=r"judged\.jsonl: a row is not a judged pair"):
        report.draw(tmp_path)
    assert report.draw(tmp_path / "nowhere") == []


# ---- a folder judges -----------------------------------------------------------------------------------------------


@pytest.fixture
def judge_folder(base: Path, tmp_path: Path) -> Path:
    """A model that has room for what a judge is asked, and a chat template."""
    folder = tmp_path / "judge"
    shutil.copytree(base, folder)
    shutil.copy(ROOT / "configs/chat_templates/qwen.jinja", folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 9000}))
    return folder


class JudgeFolder(Folder):
    """A judge that our own server serves: it reads what its tokens say."""

    def __init__(self, server: EndpointServer, tokenizer: Any, stop_after: int = -1) -> None:
        super().__init__(server)
        self._tokenizer, self.stop_after, self.texts, self.waves = tokenizer, stop_after, list[str](), 0

    def generate(self, requests: Any, params: Any, *, version: int, on_answer: Any) -> None:
        self.waves += 1
        for place, request in enumerate(requests):
            self.texts.append(self._tokenizer.decode(list(request.prompt.token_ids)))
            said = judge({"messages": [{"content": self.texts[-1]}]})
            ids, logp = Int32s([5, 6]), Float32s([-1.0, -1.0])
            on_answer(place, (Completion("", 0, ids, logp, said, FinishReason.STOP, 0, request.seed),))
            if len(self.texts) == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)


def judged_here(
    tmp_path: Path, server: EndpointServer, judges: Path, engine: Folder, *, resume: bool = False
) -> Path:
    """A run whose judge is a folder."""
    from r1mega.stages import preferences

    text = CONFIG[: CONFIG.index("[judge.endpoint]")] + f'[judge]\nmodel = "{judges}"\n'
    write(tmp_path, server, text)
    config = load_recipe(tmp_path / "pairs.toml", ["pairs.length_step=1000", "pairs.max_tokens=64"])
    assert isinstance(config, MakePreferences)
    run_dir = RunDir(tmp_path / "run", config, CLUSTER, resume=resume)
    try:
        preferences.run(config, CLUSTER, run_dir, serve=engine.serve)
    finally:
        run_dir.close()
    return tmp_path / "run"


def test_a_folder_judges_as_an_endpoint_does_and_goes_on_after_a_signal(
    server: EndpointServer, judge_folder: Path, tmp_path: Path
):
    tokenizer = load_tokenizer(judge_folder)
    stopped, engine = (JudgeFolder(server, tokenizer, stop_after=n) for n in (23, -1))
    with pytest.raises(Interrupted, match="continue with --resume"):
        judged_here(tmp_path / "here", server, judge_folder, stopped)
    run_dir = judged_here(tmp_path / "here", server, judge_folder, engine, resume=True)
    assert engine.made["max_model_len"] == 9000 and engine.made["model_dir"] == judge_folder
    assert isinstance(engine.made["give"], GiveFolder) and engine.made["give"]._verify == 20
    pairs = rows(run_dir, "pairs.jsonl")
    assert len(engine.texts) == 4 * made(run_dir)["counts"]["pairs judged"] - 23  # nothing twice
    assert pairs[0]["provenance"]["judge"]["model"] == str(judge_folder)
    assert len(pairs[0]["provenance"]["judge"]["digest"]) == 32 and engine.texts[0].startswith("<|im_start|>system")
    run(write(tmp_path / "there", server), tmp_path / "there/run", "pairs.length_step=1000", "pairs.max_tokens=64")
    there = rows(tmp_path / "there/run", "pairs.jsonl")
    assert [(r["chosen"], r["rejected"], r["votes"]) for r in there] == [
        (r["chosen"], r["rejected"], r["votes"]) for r in pairs
    ]


def test_a_look_at_a_judges_folder(server: EndpointServer, judge_folder: Path, tmp_path: Path):
    config = write(tmp_path, server, CONFIG[: CONFIG.index("[judge.endpoint]")] + "[judge]\n")
    named = f"judge.model={judge_folder}"
    assert look(config, LAPTOP, [named]).absent == ()
    (absent,) = look(config, LAPTOP, [f"judge.model={tmp_path}/none"]).absent
    assert "judge.model" in absent and "not there yet" in absent
    gpu1 = str(ROOT / "configs/cluster/gpu1.toml")
    for cluster in (LAPTOP, gpu1):
        with pytest.raises(ConfigError, match=r"judge.model: cluster.rollout.tp: 3 ranks"):
            apart = ["cluster.placement=disaggregated", "cluster.gpus_per_node=8"] if cluster == gpu1 else []
            look(config, cluster, [named, "cluster.rollout.tp=3", *apart])
    with pytest.raises(ConfigError, match=r"judge.model: memory: on a GPU of the engine"):
        look(config, gpu1, [named, "cluster.gpu_memory_gib=1"])
    assert "1 server(s) of tp x dp = 1 rank(s) take a GPU each" in look(config, gpu1, [named]).absent[0]
    (judge_folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template"):
        look(config, LAPTOP, [named])
    (judge_folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"judge\.model: .* has no tokenizer\.json: name a whole"):
        look(config, LAPTOP, [named])
