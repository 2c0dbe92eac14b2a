"""Several finished models in one evaluation: who is asked by which server, what each leaves, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from check_and_run import answer, stop_at_start
from grpo_run import CLUSTER, SUMS, base
from one_pool import this_process_pool
from recording import stop_signal
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from r1mega import cli
from r1mega.buffers import Float32s, Int32s
from r1mega.evaluation import results
from r1mega.recipe.evaluate import Evaluate
from r1mega.rollout.alike import kind_of
from r1mega.runtime.digests import Digests
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason

__all__ = ["base"]  # a fixture

TABLES = [{**SUMS, "num": 8}, {**SUMS, "num": 4, "domain": "logic", "params": {"min_terms": 4, "max_terms": 4}}]
COLUMNS = {"sums": {"domains": ["math"]}, "long": {"sources": ["chain_sum_2"]}, "all": {"domains": ["math", "logic"]}}
RIGHT, WRONG = "<think>1=1</think><answer>{}</answer>", "<think>1=1</think><answer>no</answer>"


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """good and bad are of one architecture, and other has another norm; all three have other weights."""
    root = tmp_path_factory.mktemp("folders")
    found = {name: root / name for name in ("good", "other", "bad")}
    for number, folder in enumerate(found.values()):
        shutil.copytree(base, folder)
        (file,) = folder.glob("*.safetensors")
        save_file({name: t + number for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    file = found["other"] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))
    return found


class Servers:
    """Makes what `rollout.served.ServedModel` is, and remembers what became of each."""

    def __init__(self, stop_after: int | None = None) -> None:
        """stop_after: so many requests a signal comes."""
        self.did, self.rooms, self.asked = list[str](), list[int](), list[Any]()
        self.stop_after = stop_after

    def serve(self, model_dir: Path, layout: Any, *, interrupt: Any, max_model_len: int, **options: Any) -> Any:
        self.rooms.append(max_model_len)
        return ForSeveral(self, model_dir, interrupt)


class ForSeveral:
    def __init__(self, servers: Servers, folder: Path, interrupt: Any) -> None:
        self.servers, self.folder, self.interrupt = servers, folder, interrupt

    def __enter__(self) -> "ForSeveral":
        self.servers.did.append("start")
        return self

    def __exit__(self, *error: object) -> None:
        self.servers.did.append("stop")

    def turn_to(self, folder: Path) -> None:
        self.folder = folder

    def generate(self, requests: Any, params: Any, *, version: int, on_answer: Any) -> None:
        """good is right every time, other in the longer sums alone, bad never."""
        name = self.folder.name
        self.servers.did.append(name)
        with self.interrupt.at_once():
            for place, request in enumerate(requests):
                p = request.prompt
                self.servers.asked.append((name, p.id, params, request.seed, version))
                right = name == "good" or (name == "other" and p.source == "chain_sum_2")
                text = (RIGHT if right else WRONG).format(p.truth)
                ids, logp = Int32s([5, 6]), Float32s([-1.0, -1.0])
                on_answer(
                    place,
                    tuple(
                        Completion(p.id, i, ids, logp, text, FinishReason.STOP, 0, request.seed + i)
                        for i in range(request.n)
                    ),
                )
                if len(self.servers.asked) == self.servers.stop_after:
                    stop_signal()


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "stage": "evaluate", "sampling": {"temperature": 1.0, "max_new_tokens": 8, "top_p": 1.0},
        "evaluation": {"every_steps": 1, "questions": TABLES, "samples_per_question": 2}, "columns": COLUMNS,
        **changes,
    }  # fmt: skip


def evaluate(folder: Path, servers: Servers, *, resume: bool = False, **changes: Any) -> Path:
    from r1mega.stages import evaluate

    config = Evaluate.model_validate(settings(**changes))
    assert config.faults() == []
    run_dir = RunDir(folder, config, CLUSTER, resume=resume)
    try:
        evaluate.run(config, CLUSTER, run_dir, serve=servers.serve, pool=this_process_pool)
    finally:
        run_dir.close()
    return folder


def models_of(folders: dict[str, Path]) -> dict[str, str]:
    return {f"the_{name}": str(path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def undisturbed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Servers]:
    servers = Servers()
    return evaluate(tmp_path_factory.mktemp("several") / "run", servers, models=models_of(folders)), servers


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "replayed_answers")}


def test_a_server_is_shared_by_those_that_are_served_alike_and_two_are_never_there_at_once(undisturbed: Any):
    """Each model sampled, then greedily; of two architectures, so two servers."""
    assert undisturbed[1].did == ["start", "good", "good", "bad", "bad", "stop", "start", "other", "other", "stop"]
    assert len(set(undisturbed[1].rooms)) == 1


def test_those_whose_server_runs_already_come_first(
    undisturbed: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that an earlier stage of a chain has left: it would end where another one starts."""
    monkeypatch.setattr("r1mega.stages.evaluate.kinds_left", lambda: {kind_of(folders["other"])})
    servers = Servers()
    run = evaluate(tmp_path / "run", servers, models=models_of(folders))
    assert servers.did == ["start", "other", "other", "stop", "start", "good", "good", "bad", "bad", "stop"]
    assert summary(run) == summary(undisturbed[0]) and next(iter(summary(run)["models"])) == "the_good"


def test_all_models_are_asked_the_same_with_the_same_seeds(undisturbed: Any):
    by_name: dict[str, list[Any]] = {}
    for name, *asked in undisturbed[1].asked:
        by_name.setdefault(name, []).append(asked)
    assert by_name["good"] == by_name["bad"] == by_name["other"] and len(by_name["good"]) == 2 * 12


def test_each_model_is_left_as_it_would_be_alone(undisturbed: Any, folders: dict[str, Path], tmp_path: Path):
    """The same files as an evaluation of that model alone leaves, under its own weights' digest."""
    for name, path in folders.items():
        alone = evaluate(tmp_path / name, Servers(), model={"path": str(path)})
        together = undisturbed[0] / f"the_{name}"
        for file in (results.RESULTS, results.RECORD):
            assert (together / file).read_bytes() == (alone / file).read_bytes()
        assert results.read(together)[0].digests["weights"] == Digests(tmp_path).of(path)
        of_one = summary(undisturbed[0])["models"][f"the_{name}"]
        assert of_one == {key: summary(alone)[key] for key in ("eval", "scores", "columns")}


def test_columns_are_the_scores_of_their_questions(undisturbed: Any):
    """By hand: good is right everywhere, bad nowhere, other in the 4 longer of 12 questions."""
    found = summary(undisturbed[0])["models"]
    assert list(found) == ["the_good", "the_other", "the_bad"]  # as in the config, whoever shared a server
    means = {
        name: {column: of["columns"][column]["pass_at_1"]["mean"] for column in COLUMNS} for name, of in found.items()
    }
    assert means["the_good"] == {"sums": 1.0, "long": 1.0, "all": 1.0}
    assert means["the_bad"] == {"sums": 0.0, "long": 0.0, "all": 0.0}
    assert means["the_other"] == pytest.approx({"sums": 0.0, "long": 1.0, "all": 4 / 12})
    assert {c: found["the_bad"]["columns"][c]["num_questions"] for c in COLUMNS} == {"sums": 8, "long": 4, "all": 12}
    record, rows = results.read(undisturbed[0] / "the_other")
    long = results.in_column(rows, record.columns["long"])
    assert [row.domain for row in long] == ["logic"] * 4 and all(row.mean == 1.0 for row in long)


def test_two_of_them_can_be_compared(undisturbed: Any):
    compared = CliRunner().invoke(cli.app, ["compare", *(str(undisturbed[0] / f"the_{n}") for n in ("good", "bad"))])
    assert "B is worse than A" in compared.output and compared.exit_code == 1


@pytest.mark.parametrize("answered", [1, 13, 30, 48, 50, 71])
def test_a_stopped_evaluation_of_several_goes_on_and_asks_nothing_twice(
    answered: int, undisturbed: Any, folders: dict[str, Path], tmp_path: Path
):
    servers = Servers(stop_after=answered)
    with pytest.raises(Interrupted, match="continue with --resume"):
        evaluate(tmp_path / "run", servers, models=models_of(folders))
    assert len(servers.asked) == answered
    evaluate(tmp_path / "run", servers, models=models_of(folders), resume=True)
    assert servers.asked == undisturbed[1].asked and len(servers.asked) == 72
    assert summary(tmp_path / "run") == summary(undisturbed[0])


def test_other_weights_under_a_name_are_no_resume(folders: dict[str, Path], tmp_path: Path):
    evaluate(tmp_path / "run", Servers(), models={"a": str(folders["good"])})
    with pytest.raises(Exception, match=r"models\.a: other content than the run began with"):
        evaluate(tmp_path / "run", Servers(), models={"a": str(folders["bad"])}, resume=True)


def test_results_of_an_older_version_have_no_domain(undisturbed: Any, tmp_path: Path):
    for file in (results.RESULTS, results.RECORD):
        shutil.copy(undisturbed[0] / "the_good" / file, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / results.RESULTS).read_text().splitlines()]
    lines = [json.dumps({k: v for k, v in row.items() if k not in ("domain", "source")}) for row in rows]
    (tmp_path / results.RESULTS).write_text("\n".join(lines) + "\n")
    record = json.loads((tmp_path / results.RECORD).read_text())
    record.pop("columns")
    (tmp_path / results.RECORD).write_text(json.dumps(record))
    found, read = results.read(tmp_path)
    assert found.columns == {} and {(row.domain, row.source) for row in read} == {("", "")}


def test_what_cannot_be_asked_is_said_of_the_settings(folders: dict[str, Path], base: Path):
    def faults(**changes: Any) -> list[str]:
        return Evaluate.model_validate(settings(**changes)).faults()

    models = models_of(folders)
    said = {
        "[model] is there as well": {"models": models, "model": {"path": str(base)}},
        "models.logs: a run directory has a folder": {"models": {"logs": str(base)}},
        "columns.x: says of no question": {"models": models, "columns": {"x": {}}},
        "is of 'code': math, logic": {"models": models, "columns": {"x": {"domains": ["code"]}}},
        "is called 'chain_sums' (did you mean 'chain_sum'?)": {
            "models": models, "columns": {"x": {"sources": ["chain_sums"]}}},
        "none of its sources is of its domains": {
            "models": models, "columns": {"x": {"domains": ["logic"], "sources": ["chain_sum"]}}},
    }  # fmt: skip
    for text, changes in said.items():
        (found,) = faults(**changes)
        assert text in found


def test_check_tells_of_every_folder_at_once(folders: dict[str, Path], tmp_path: Path, monkeypatch, capsys):
    stop_at_start(monkeypatch, tmp_path / "cache")
    torn, scored = tmp_path / "torn", tmp_path / "unknown"
    shutil.copytree(folders["good"], torn)
    (torn / "tokenizer.json").unlink()
    shutil.copytree(folders["good"], scored)
    config = json.loads((scored / "config.json").read_text())
    (scored / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))

    def check(**models: Path) -> tuple[int, str]:
        file = tmp_path / "eval.toml"
        named = ", ".join(f'{name} = "{path}"' for name, path in models.items())
        file.write_text(f"""
            stage = "evaluate"
            models = {{ {named} }}
            sampling = {{ max_new_tokens = 8 }}
            [evaluation]
            every_steps = 1
            questions = [{{ kind = "reasoning_gym", family = "chain_sum", num = 2 }}]
        """)
        return answer(lambda: cli.check(file, "laptop", []), capsys)

    code, said = check(good=folders["good"], one=tmp_path / "one", two=tmp_path / "two")
    assert code == 0 and "models.one" in said and "models.two" in said and "models.good" not in said
    code, said = check(good=folders["good"], torn=torn, also=torn)
    assert code == 2 and "2 of 3 models" in said and "models.torn" in said and "models.also" in said
    code, said = check(good=folders["good"], act=scored)
    assert code == 2 and "models.act: " in said and "hidden_act" in said


def test_terminal_and_page_show_each_model_with_its_columns(undisturbed: Any, tmp_path: Path, capsys):
    from r1mega.report.show import show

    shutil.copytree(undisturbed[0], tmp_path / "run")
    show(tmp_path / "run")
    said, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    for text in (said, page):
        assert all(name in text for name in ("the_good", "the_other", "the_bad", "pass@1, long", "pass@1, sums"))
    (line,) = [line for line in said.splitlines() if "pass@1, long" in line]
    assert line.count("100.0%") >= 2 and line.index("100.0%") < line.index(" 0.0%")
