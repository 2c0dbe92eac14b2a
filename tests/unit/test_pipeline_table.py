"""What a chain's file says of its table and relations is held against its stages before the first one runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluated_chains import write_chain

from r1mega.errors import ConfigError
from r1mega.pipeline import chain, starting
from r1mega.pipeline.graph import load_pipeline, look_at_chain
from r1mega.pipeline.plan import PipelineRun, Planned
from r1mega.recipe.load import load_recipe
from r1mega.report.show import show

ROOT = Path(__file__).parents[2]
EVALUATE = """
stage = "evaluate"
[models]
base = "/nowhere/base"
[sampling]
temperature = 1.0
top_p = 1.0
max_new_tokens = 48
[columns]
reasoning = { domains = ["math"] }
[evaluation]
every_steps = 7
samples_per_question = 4
format = "any"
[[evaluation.questions]]
kind = "reasoning_gym"
family = "chain_sum"
params = { min_terms = 3, max_terms = 4, min_digits = 1, max_digits = 1 }
num = 40
"""
STAGES = """
[[stages]]
name = "base"
config = "{root}/configs/tiny/r1/0_base.toml"
[[stages]]
name = "other"
config = "{root}/configs/tiny/r1/0_base.toml"
[[stages]]
name = "eval"
config = "eval.toml"
reads = {{ "models.base" = "base/hf", "models.other" = "other/hf" }}
"""
TABLE = """
[table]
evaluations = "eval"
rows = { base = "Base" }
[[relations]]
claim = "Other is higher"
all = [{ a = "base", b = "other", column = "reasoning", is = "higher" }]
"""


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def written(folder: Path, table: str) -> Path:
    (folder / "eval.toml").write_text(EVALUATE)
    (folder / "chain.toml").write_text(STAGES.format(root=ROOT) + table)
    return folder / "chain.toml"


def look(folder: Path, table: str) -> int:
    return len(look_at_chain(load_pipeline(written(folder, table)), "laptop", folder / "run", []))


def dry_run(folder: Path, *overrides: str) -> None:
    chain.tell_plan(PipelineRun(load_pipeline(folder / "chain.toml"), "laptop", folder / "run", overrides))


def test_a_table_of_models_that_earlier_stages_make(tmp_path: Path):
    assert look(tmp_path, TABLE) == 3
    pipeline = load_pipeline(tmp_path / "chain.toml")
    assert pipeline.table is not None and pipeline.table.label("base") == "Base"
    assert pipeline.relations[0].all[0].claimed == "higher"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('b = "other"', 'b = "othr"', r"0.all.0.b: no evaluation has a model 'othr' \(did you mean 'other'\?\)"),
        ('"reasoning", is', '"reason", is', r"relations.0.all.0.column: .* 'reason' \(did you mean 'reasoning'\?\)"),
        ("base = ", "bse = ", r"rows.bse: no evaluation has a model 'bse' \(did you mean 'base'\?\): base, other"),
        ('evaluations = "eval"', 'evaluations = "other"', "stage other leaves no judged answers"),
    ],
)  # fmt: skip
def test_what_no_stage_evaluates_is_told_before_the_first_runs(tmp_path: Path, old: str, new: str, said: str):
    assert TABLE.count(old) == 1
    with pytest.raises(ConfigError, match=said):
        look(tmp_path, TABLE.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        dry_run(tmp_path)


SET = """
[[stages]]
name = "set"
config = "set.toml"
"""


@pytest.mark.parametrize(
    ("more", "override", "said"),
    [
        (
            f'{SET}[[stages]]\nname = "sft"\nconfig = "{ROOT}/configs/tiny/r1/1_cold_start.toml"\nstart = "set"\n',
            "seed=1",
            "stages.sft.start: set/hf: stage set leaves conversations.jsonl behind",
        ),
        (
            f'{SET}reads = {{ "data.0.files" = ["base/rows.jsonl"] }}',
            "seed=1",
            "base/rows.jsonl: stage base leaves hf",
        ),
        (f'{SET}same_seconds_as = "base"', "seed=1", "set.same_seconds_as: its config has no max_seconds"),
        ("", "sede=1", "--set sede=1: no stage of the pipeline"),
    ],
)
def test_what_no_stage_can_give_another_is_told_before_the_first_runs_and_by_a_dry_run(
    tmp_path: Path, more: str, override: str, said: str
):
    (tmp_path / "set.toml").write_text('stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\n')
    pipeline = load_pipeline(written(tmp_path, more))
    with pytest.raises(ConfigError, match=said):
        look_at_chain(pipeline, "laptop", tmp_path / "run", [override])
    with pytest.raises(ConfigError, match=said):
        dry_run(tmp_path, override)


def test_a_bound_of_seconds_is_looked_at_before_they_are_known(tmp_path: Path):
    """One that no schedule of the stage can have would otherwise be refused once the earlier stage has ended."""
    rl = ROOT / "configs/tiny/r1/5_all_scenarios_rl.toml"
    more = f'[[stages]]\nname = "rl"\nconfig = "{rl}"\nsame_seconds_as = "base"\n'
    with pytest.raises(ConfigError, match=r"max_seconds: .* counts from the run's last step"):
        look(tmp_path, more)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            TABLE.replace('"eval"', '"evl"', 1),
            r"chain.toml: 1 fault.*\n.*evaluations: no stage is named 'evl' \(did you",
        ),
        (TABLE.replace('"higher" }', '"above" }'), r"relations.0.all.0.is: input should be 'higher'"),
        (TABLE.replace('b = "other"', 'b = "base"'), r"relations.0.all.0.a and b are both 'base'"),
        (TABLE[TABLE.index("[[") :], r"relations: there is no \[table\]"),
    ],
)
def test_what_is_wrong_in_the_file_itself_is_told_with_it(tmp_path: Path, table: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load_pipeline(written(tmp_path, table))


def test_an_evaluation_says_what_it_scores(tmp_path: Path):
    written(tmp_path, TABLE)
    models = ["models={}", "models.b=/nowhere/b", "models.a=/nowhere/a"]
    scored = load_recipe(tmp_path / "eval.toml", models).scored()
    assert scored is not None and scored.models == ("b", "a")
    assert scored.columns == {"reasoning": {"domains": ["math"], "sources": []}}
    one = load_recipe(tmp_path / "eval.toml", ["models={}", "model.path=/nowhere/b"]).scored()
    assert one is not None and one.models == ("",) and one.asked == scored.asked
    for alike in ("evaluation.format=r1", "seed=4"):  # a format is the template's, and a seed is drawn by all alike
        same = load_recipe(tmp_path / "eval.toml", [*models, alike]).scored()
        assert same is not None and same.asked == scored.asked
    for other in ("evaluation.seed=3", "sampling.temperature=0.5", "evaluation.questions.0.num=41"):
        different = load_recipe(tmp_path / "eval.toml", [*models, other]).scored()
        assert different is not None and different.asked != scored.asked
    assert load_recipe(ROOT / "configs/tiny/r1/0_base.toml").scored() is None


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages whose processes are replaced: each leaves a summary, and the evaluation answers of both models."""
    names: list[str] = []

    def run_stage(plan: Planned, of: PipelineRun, starts: object) -> tuple[int, None]:
        names.append(plan.node.name)
        folder = of.run_dir / plan.node.name
        folder.mkdir(parents=True)
        if plan.node.name == "eval":
            write_chain(of.run_dir, {"base": {"math": [1] * 40}, "other": {"math": [3] * 40}})
        (folder / "summary.json").write_text(json.dumps({"stage": "evaluate", "seconds": 2.0}))
        return 0, None

    monkeypatch.setattr(chain, "_run_stage", run_stage)
    return names


def test_a_finished_chain_has_its_table_and_says_what_holds(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
):
    pipeline = load_pipeline(written(tmp_path, TABLE))
    assert chain.run_chain(PipelineRun(pipeline, "laptop", tmp_path / "run"), resume=False)
    assert ran == ["base", "other", "eval"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [row["label"] for row in summary["table"]["rows"]] == ["Base"]  # as the table says
    assert summary["table"]["rows"][0]["cells"]["reasoning"]["mean"] == 0.25
    assert summary["relations"][0]["outcome"] == "HOLDS"
    assert summary["relations"][0]["parts"][0]["difference"]["mean"] == 0.5
    show(tmp_path / "run")
    printed = capsys.readouterr().out
    assert "25.0%" in printed and "HOLDS: Other is higher" in printed


def test_a_chain_without_a_table_has_none(tmp_path: Path, ran: list[str]):
    pipeline = load_pipeline(written(tmp_path, ""))
    assert chain.run_chain(PipelineRun(pipeline, "laptop", tmp_path / "run"), resume=False)
    assert not {"table", "relations"} & json.loads((tmp_path / "run/summary.json").read_text()).keys()


def test_a_stage_may_run_on_machines_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path, TABLE)
    file = tmp_path / "chain.toml"
    file.write_text(file.read_text().replace('name = "other"\n', 'name = "other"\ncluster = "laptop2"\n', 1))
    pipeline = load_pipeline(file)
    looks = look_at_chain(pipeline, "laptop", tmp_path / "run", [])
    assert [seen.num_ranks for seen in looks] == [1, 2, 1]
    plans = PipelineRun(pipeline, "laptop", tmp_path / "run").plan()
    assert [plan.machine.trainer.ranks for plan in plans] == [1, 2, 1]
    commands: list[list[str]] = []

    def spawn(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(poll=lambda: 0, returncode=0, args=command)

    monkeypatch.setattr(starting.process, "spawn", spawn)
    for plan in plans:
        chain._run_stage(plan, PipelineRun(pipeline, "laptop", tmp_path / "run"), starting.Starts([]))
    assert [command[command.index("--cluster") + 1] for command in commands] == ["laptop", "laptop2", "laptop"]
