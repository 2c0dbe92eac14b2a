"""The evaluation of a finished model, with answers whose verdicts are known: what is asked, and what is summed up."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import FakeServer
from grpo_run import CLUSTER, SUMS, base
from grpo_run import config as grpo_config
from one_pool import this_process_pool
from recording import stop_signal

from r1mega.buffers import Float32s, Int32s
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError
from r1mega.evaluation import results
from r1mega.evaluation.compare import refuse_different
from r1mega.preflight.data import check_data
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.load import load_recipe
from r1mega.rollout import kept
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.engine import SamplingParams
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason
from r1mega.stages.questions import ask
from r1mega.weights.folder import GiveFolder

__all__ = ["base"]  # a fixture

SAID = {"right": "<think>1=1</think><answer>{}</answer>", "bare": "<answer>{}</answer>", "wrong": "it is 1{}"}
KINDS = {0.7: (("right", "bare", "wrong"), ("wrong",) * 3), 0.0: (("right",), ("bare",))}
"""Temperature -> of each question, what its answers are."""


class Answering:
    """What `rollout.served.ServedModel` does, again and again; it remembers what it was asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        """stop_after: so many requests a signal comes."""
        self.did: list[str] = []
        self.made: dict[str, Any] = {}
        self.asked: list[SimpleNamespace] = []
        self.stop_after, self._places = stop_after, dict[str, int]()

    def serve(self, model_dir: Path, layout: Any, *, interrupt: Any, **options: Any) -> Any:
        self.made = {"model_dir": model_dir, "layout": layout, **options}
        self._interrupt = interrupt
        return self

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *error: object) -> None:
        self.did.append("stopped")

    def generate(self, requests: Any, params: SamplingParams, *, version: int, on_answer: Any) -> None:
        self.did.append(f"asked {len(requests)}")
        with self._interrupt.at_once():
            for place, request in enumerate(requests):
                self.asked.append(SimpleNamespace(request=request, params=params, version=version))
                on_answer(place, self._answers(request, params))
                if len(self.asked) == self.stop_after:
                    stop_signal()

    def _answers(self, request: Any, params: SamplingParams) -> tuple[Completion, ...]:
        p = request.prompt
        kinds = KINDS[params.temperature][self._places.setdefault(p.id, len(self._places))]
        assert request.n == len(kinds)
        ids, logp = Int32s([5, 6]), Float32s([-1.0, -1.0])
        texts = [SAID[kind].format(p.truth) for kind in kinds]
        return tuple(
            Completion(p.id, i, ids, logp, text, FinishReason.STOP, 0, request.seed + i)
            for i, text in enumerate(texts)
        )


def evaluate(base: Path, folder: Path, engine: Answering, *, resume: bool = False, **sampling: Any) -> Evaluate:
    """The stage, in a run directory that may have been begun."""
    from r1mega.stages import evaluate

    drawn = {"temperature": 0.7, "max_new_tokens": 8, "top_p": 0.9, "stop": ["</answer>"], **sampling}
    config = Evaluate.model_validate({
        "stage": "evaluate", "model": {"path": str(base)}, "sampling": drawn,
        "evaluation": {"every_steps": 1, "questions": [{**SUMS, "num": 2}], "samples_per_question": 3},
    })  # fmt: skip
    run_dir = RunDir(folder, config, CLUSTER, resume=resume)
    try:
        evaluate.run(config, CLUSTER, run_dir, serve=engine.serve, pool=this_process_pool)
    finally:
        run_dir.close()
    return config


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


@pytest.fixture(scope="module")
def evaluated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(settings, what was asked, the run directory)"""
    engine, folder = Answering(), tmp_path_factory.mktemp("evaluated") / "run"
    return evaluate(base, folder, engine), engine, folder


@pytest.mark.parametrize("answered", [1, 2, 3])
def test_a_stopped_evaluation_goes_on_and_samples_nothing_twice(
    answered: int, evaluated: Any, base: Path, tmp_path: Path
):
    engine, folder = Answering(stop_after=answered), tmp_path / "run"
    with pytest.raises(Interrupted, match="continue with --resume") as stopped:
        evaluate(base, folder, engine)
    assert stopped.value.exit_code == 128 + signal.SIGTERM and len(engine.asked) == answered
    evaluate(base, folder, engine, resume=True)
    undisturbed = evaluated[1].asked
    assert [(a.request, a.params) for a in engine.asked] == [(a.request, a.params) for a in undisturbed]
    num = {1: 3, 2: 6, 3: 7}[answered]  # three to each question, then one to each
    assert summary(folder) == {**summary(evaluated[2]), "replayed_answers": num}


def test_an_evaluation_that_is_all_in_the_journal_asks_for_nothing(evaluated: Any, base: Path, tmp_path: Path):
    folder, engine = tmp_path / "run", Answering()
    shutil.copytree(evaluated[2], folder)
    evaluate(base, folder, engine, resume=True)
    assert engine.asked == [] and engine.did == ["stopped"]
    assert summary(folder) == {**summary(evaluated[2]), "replayed_answers": 8}


def test_answers_of_other_settings_are_not_used(evaluated: Any, base: Path, tmp_path: Path):
    folder, engine = tmp_path / "run", Answering()
    folder.mkdir()
    shutil.copytree(evaluated[2] / "journal", folder / "journal")
    evaluate(base, folder, engine, top_p=0.8)
    assert [a.params.top_p for a in engine.asked] == [0.8, 0.8]  # greedily it is of no consequence


class OverHttp(FakeServer):
    """As `ServedModel` starts it; asked through the real client."""

    foreign = False

    def wait_ready(self) -> None: ...

    def stop(self) -> None:
        self.shut()


def test_settings_of_sampling_go_from_a_file_into_the_requests(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Sampled answers as the file says, greedy ones as far as it concerns them."""
    from r1mega.stages import evaluate

    (tmp_path / "eval.toml").write_text(f"""
        stage = "evaluate"
        model = {{ path = "{base}" }}
        sampling = {{ temperature = 0.6, top_p = 0.95, max_new_tokens = 3, stop = ["</answer>", "so:"] }}
        evaluation = {{ every_steps = 1, samples_per_question = 2, questions = [
            {{ kind = "reasoning_gym", family = "chain_sum", num = 1 }},
        ] }}
    """)
    config, server = load_recipe(tmp_path / "eval.toml"), OverHttp(base)
    server.vocab_size = 288
    monkeypatch.setattr(kept, "Server", lambda *_, **__: server)
    assert isinstance(config, Evaluate)
    run_dir = RunDir(tmp_path / "run", config, CLUSTER, resume=False)
    try:
        evaluate.run(config, CLUSTER, run_dir, pool=this_process_pool)
    finally:
        run_dir.close()
    sent = [
        tuple(body[name] for name in ("temperature", "top_p", "max_tokens", "stop", "n")) for body in server.bodies
    ]
    assert sent == [(0.6, 0.95, 3, ["</answer>", "so:"], 2), (0.0, 1.0, 3, ["</answer>", "so:"], 1)]


def test_a_stop_string_with_the_end_token_in_it_is_refused(base: Path, tmp_path: Path):
    from r1mega.stages import evaluate

    end = load_tokenizer(base).eos_token
    sampling = {"max_new_tokens": 8, "stop": ["</answer>", f"so{end}"]}
    config = Evaluate.model_validate({
        "stage": "evaluate", "model": {"path": str(base)}, "sampling": sampling,
        "evaluation": {"every_steps": 1, "questions": [{**SUMS, "num": 1}]},
    })  # fmt: skip
    run_dir = RunDir(tmp_path / "run", config, CLUSTER, resume=False)
    with pytest.raises(ConfigError, match="ends no answer, since it contains the end token") as refused:
        evaluate.run(config, CLUSTER, run_dir, serve=lambda *_, **__: pytest.fail("nothing is started"))
    run_dir.close()
    with pytest.raises(ConfigError) as checked:
        check_data(config, None, brief=False)
    assert str(checked.value) == str(refused.value)
    rl = grpo_config(base, {"sampling": {"max_new_tokens": 8, "stop": [str(end)]}})
    with pytest.raises(ConfigError, match="contains the end token"):
        ask(rl)


def test_every_answer_counts_once(evaluated: Any):
    """Of six answers one is right in the format and one right without it; of the two greedy ones one each."""
    result = json.loads((evaluated[2] / "summary.json").read_text())
    after, greedy = result["eval"]["after"], result["eval"]["greedy_after"]
    assert (result["stage"], result["steps"], set(result["eval"])) == ("evaluate", 0, {"after", "greedy_after"})
    assert (after["num_questions"], after["num_answers"], greedy["num_answers"]) == (2, 6, 2)

    def shares(of: Any) -> list[float]:
        return [of["strict"]["mean"], of["lenient"]["mean"], of["format"]]

    assert shares(after) == pytest.approx([1 / 6, 2 / 6, 1 / 6])
    assert shares(greedy) == [0.5, 1.0, 0.5]


def test_held_out_questions_are_asked_each_with_seeds_of_its_own(evaluated: Any, base: Path):
    config, engine, folder = evaluated
    assert [(a.params, a.version) for a in engine.asked] == [
        *2 * [(SamplingParams(0.7, 8, top_p=0.9, stop=("</answer>",)), 0)],
        *2 * [(SamplingParams(0.0, 8, stop=("</answer>",)), 0)],
    ]
    sampled, greedy = [a.request for a in engine.asked[:2]], [a.request for a in engine.asked[2:]]
    asked = [r.prompt for r in sampled]
    assert [r.prompt for r in greedy] == asked
    listed = [json.loads(line)["question"] for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert listed == [p.question for p in asked] and all(q in HELD_OUT for q in listed)
    drawn = [r.seed + i for r in sampled for i in range(r.n)]
    assert len(set(drawn)) == len(drawn) == 6
    assert engine.made["model_dir"] == base and engine.made["seed"] == config.seed
    assert engine.made["places"] == (ServerPlace(),)
    assert isinstance(engine.made["give"], GiveFolder)  # with which it takes a server that a chain has kept
    assert engine.made["give"]._verify == 20
    assert engine.made["max_model_len"] == max(len(p.token_ids) for p in asked) + 8
    assert engine.did == ["asked 2", "asked 2", "stopped"]


def test_judged_answers_are_kept_for_comparisons(evaluated: Any):
    """KINDS, judged and in order; what they are of; and the figures of the summary once more."""
    config, _, folder = evaluated
    record, rows = results.read(folder)
    kept = [[(s.value, s.parts["lenient"], s.parts["format"], s.tokens) for s in row.samples] for row in rows]
    wrong = (0.0, 0.0, 0.0, 2)
    assert kept == [[(1.0, 1.0, 1.0, 2), (0.0, 1.0, 0.0, 2), wrong], [wrong] * 3]
    questions = [json.loads(line)["question"] for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert len({row.digest for row in rows}) == len(questions) == 2
    assert record.sampling["temperature"] == 0.7 and record.sampling["samples"] == 3
    assert record.digests["weights"] == json.loads((folder / "run.json").read_text())["start"] != ""
    summary = json.loads((folder / "summary.json").read_text())["eval"]["after"]
    assert record.scores["pass_at_1"] == summary["strict"]
    assert [of["k"] for of in record.scores["pass_at_k"]] == [2, 3]
    (votes,) = record.scores["cons_at_k"]
    assert votes["k"] == 3 and votes["interval"]["mean"] == 0.5  # the one vote that is cast is right
    refuse_different(record, record, "A", "B")
    hotter = config.model_copy(update={"sampling": config.sampling.model_copy(update={"temperature": 0.8})})
    other = results.digests_of(rows, "w", "p", {**hotter.sampling.model_dump(), "samples": 3})
    assert other["sampling"] != record.digests["sampling"] and other["questions"] == record.digests["questions"]
