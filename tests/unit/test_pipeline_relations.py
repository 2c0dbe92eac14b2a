"""Whether a chain's claims hold: hand-made answers whose paired differences are known, and another bootstrap."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_chains import COLUMNS, Recipes, answered, plain_bootstrap, results_of, write_chain, write_model

from r1mega.config.load import raise_if_any, validate
from r1mega.errors import ConfigError, DataError
from r1mega.pipeline.outcome import JudgedModels, judged, outcome_of
from r1mega.pipeline.relations import Relation, faults, faults_with
from r1mega.pipeline.table import ModelScores, ModelTable

TABLE = ModelTable(evaluations="eval")
ONE = {"reasoning": COLUMNS["reasoning"]}


def relation(*parts: dict[str, Any]) -> Relation:
    whole = [{"a": "a", "b": "b", "column": "reasoning", **part} for part in parts]
    return Relation.model_validate({"claim": "B differs from A", "all": whole})


def judge(run_dir: Path, *parts: dict[str, Any]) -> dict[str, Any]:
    (found,) = came_to(TABLE, [relation(*parts)], run_dir)["relations"]
    return found


def came_to(table: ModelTable, relations: list[Relation], run_dir: Path) -> dict[str, Any]:
    models = sorted(folder.name for folder in (run_dir / "eval").glob("*"))
    return outcome_of(table, relations, run_dir, {"eval": Recipes(*models)})  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def rates() -> dict[str, list[int]]:
    """Right answers of 4 to 400 questions: b is 5 points above a, close to it on the questions each."""
    draw = np.random.default_rng(11)
    a = draw.integers(0, 5, 400)
    up, down = draw.random(400) < 0.35, draw.random(400) < 0.12
    return {"a": a.tolist(), "b": np.clip(a + up - down, 0, 4).tolist()}


@pytest.fixture
def chain(tmp_path: Path, rates: dict[str, list[int]]) -> Path:
    return write_chain(tmp_path, {name: {"math": r, "helpful": [4, 0] * 20} for name, r in rates.items()})


def test_a_part_holds_where_an_independent_bootstrap_says_so(chain: Path, rates: dict[str, list[int]]):
    d = [(y - x) / 4 for x, y in zip(rates["a"], rates["b"], strict=True)]
    low, high = plain_bootstrap(d)
    assert low > 0.02
    found = judge(chain, {"is": "higher"})
    (part,) = found["parts"]
    assert (found["outcome"], found["reversed"]) == ("HOLDS", False)
    assert part["mean_a"] == pytest.approx(np.mean(rates["a"]) / 4)
    assert part["difference"]["mean"] == pytest.approx(np.mean(d))
    assert part["difference"]["low"] == pytest.approx(low, abs=0.002)
    assert part["difference"]["high"] == pytest.approx(high, abs=0.002)
    assert part["num_questions"] == 400 and part["prompts"] == "the same"


def test_the_other_way_round_it_is_reversed(chain: Path):
    for claimed in ({"is": "lower"}, {"is": "higher", "a": "b", "b": "a"}):
        found = judge(chain, claimed)
        assert (found["outcome"], found["reversed"]) == ("DOES NOT HOLD", True)
    held = judge(chain, {"is": "lower", "a": "b", "b": "a"})
    assert (held["outcome"], held["reversed"]) == ("HOLDS", False)


@pytest.mark.parametrize(
    ("b", "margin", "outcome", "reverses"),
    [
        ([2] * 400, 0.0, "DOES NOT HOLD", False),  # equal: the interval [0, 0] is not above 0
        ([2] * 400, 0.03, "HOLDS", False),
        ([1] * 8 + [2] * 392, 0.03, "HOLDS", False),  # 0.5 points down
        ([1] * 80 + [2] * 320, 0.03, "DOES NOT HOLD", True),  # 5 points down, its interval below -3
        ([1] * 50 + [2] * 350, 0.03, "DOES NOT HOLD", False),  # 3.1 points down, its interval on both sides of -3
    ],
)
def test_not_lower_lets_a_margin_pass(tmp_path: Path, b: list[int], margin: float, outcome: str, reverses: bool):
    write_chain(tmp_path, {"a": {"math": [2] * 400}, "b": {"math": b}})
    low, high = plain_bootstrap([(x - 2) / 4 for x in b])
    assert (low > -margin, high < -margin) == (outcome == "HOLDS", reverses)
    found = judge(tmp_path, {"is": "not_lower", "margin": margin})
    assert (found["outcome"], found["reversed"]) == (outcome, reverses)


def test_all_parts_have_to_hold_and_one_reverses_it(tmp_path: Path):
    down, up = (
        {"math": [4] * 20 + [2] * 80, "helpful": [1] * 100},
        {"math": [2] * 100, "helpful": [2] * 40 + [1] * 60},
    )
    write_chain(tmp_path, {"a": down, "b": up, "c": {"math": [2] * 100, "helpful": [1] * 100}})
    falls, rises = {"is": "lower"}, {"is": "higher", "column": "instructions"}
    assert judge(tmp_path, falls, rises)["outcome"] == "HOLDS"
    found = judge(tmp_path, falls | {"b": "c"}, rises | {"b": "c"})
    assert (found["outcome"], found["reversed"]) == ("DOES NOT HOLD", False)
    assert [part["holds"] for part in found["parts"]] == [True, False]
    found = judge(tmp_path, falls, rises | {"is": "lower"})
    assert (found["outcome"], found["reversed"]) == ("DOES NOT HOLD", True)


def test_five_questions_decide_nothing(tmp_path: Path):
    """Of 400 questions five differ, all for b; a bootstrap alone would say that b is higher."""
    write_chain(tmp_path, {"a": {"math": [0] * 400}, "b": {"math": [4] * 5 + [0] * 395}})
    assert plain_bootstrap([1] * 5 + [0] * 395)[0] > 0
    found = judge(tmp_path, {"is": "higher"})
    assert (found["outcome"], found["reversed"]) == ("DOES NOT HOLD", False)


def test_a_column_is_of_its_questions_alone(chain: Path):
    for name, right in (("a", 1), ("b", 3)):  # on prompts of another domain b is far above a
        results = results_of({"math": [2] * 50, "helpful": [right] * 30, "harmless": [right] * 30})
        write_model(chain / "eval" / name, results)
    found = judge(chain, {"is": "higher"})
    assert found["parts"][0]["difference"]["mean"] == 0 and found["parts"][0]["num_questions"] == 50
    assert judge(chain, {"is": "higher", "column": "instructions"})["parts"][0]["num_questions"] == 60


def test_what_is_no_pair_is_not_judged(tmp_path: Path):
    same = {"math": [2] * 50}
    write_chain(tmp_path, {"a": same, "b": same, "other": same, "cold": same, "own": same})
    write_model(tmp_path / "eval/other", [answered(f"math{i + 1}", "math", 2) for i in range(50)])
    write_model(tmp_path / "eval/cold", results_of(same), temperature=0.5)
    write_model(tmp_path / "eval/own", results_of(same), prompt="its own", format="r1_zero")
    found = judge(tmp_path, {"is": "higher", "b": "other"})
    assert found["outcome"] == "NOT JUDGED"
    assert found["parts"][0]["why"] == "the two were not asked the same: 2 of 51 questions differ"
    why = judge(tmp_path, {"is": "higher", "b": "cold"})["parts"][0]["why"]
    assert why == "the two were not sampled alike: sampling.temperature = 1.0 and 0.5"
    assert judge(tmp_path, {"is": "higher", "b": "nobody"})["outcome"] == "NOT JUDGED"
    own = judge(tmp_path, {"is": "not_lower", "b": "own"})["parts"][0]
    assert own["prompts"] == "each model's own" and "why" not in own


def test_a_reversed_part_counts_beside_one_that_cannot_be_judged(tmp_path: Path):
    write_chain(tmp_path, {"a": {"math": [4] * 50, "helpful": []}, "b": {"math": [0] * 50, "helpful": []}})
    found = judge(tmp_path, {"is": "higher"}, {"is": "higher", "column": "instructions"})
    assert (found["outcome"], found["reversed"]) == ("DOES NOT HOLD", True)
    found = judge(tmp_path, {"is": "lower"}, {"is": "higher", "column": "instructions"})
    assert (found["outcome"], found["reversed"]) == ("NOT JUDGED", False)


def test_the_table_by_hand(tmp_path: Path):
    """Three questions of which 1, 1/2 and 0 of the answers are right, and one that cannot be scored."""
    write_chain(tmp_path, {"dev1": {"math": [4, 2, 0]}, "r1": {"math": [4, 4, 4]}})
    results = [*results_of({"math": [4, 2, 0]}), answered("math9", "math", 4, unscored=True)]
    write_model(tmp_path / "eval/dev1", results, weights="d1")
    table = ModelTable(evaluations="eval", rows={"r1": "R1", "dev1": "R1-Dev1"}, columns={"reasoning": "Reasoning"})
    made = came_to(table, [], tmp_path)["table"]
    assert made["columns"] == {"reasoning": "Reasoning"}
    assert [(row["model"], row["label"], row["weights"]) for row in made["rows"]] == [
        ("r1", "R1", "weights of r1"), ("dev1", "R1-Dev1", "d1"),
    ]  # fmt: skip
    cell = made["rows"][1]["cells"]["reasoning"]
    assert cell["mean"] == 0.5 and cell["se"] == pytest.approx(0.5 / 3**0.5)
    assert (cell["num_questions"], cell["num_answers"], cell["without_score"]) == (3, 12, 1)
    assert 0 <= cell["low"] < 0.5 < cell["high"] <= 1
    whole = came_to(TABLE, [], tmp_path)["table"]
    assert [row["label"] for row in whole["rows"]] == ["dev1", "r1"] and list(whole["columns"]) == list(COLUMNS)
    assert whole["rows"][0]["cells"]["instructions"] == {"num_questions": 0, "num_answers": 0, "without_score": 0}


def test_a_stage_that_evaluates_one_model_calls_it_by_its_own_name(tmp_path: Path):
    for name, right in (("before", 1), ("after", 3)):
        write_model(tmp_path / name, results_of({"math": [right] * 20}), weights=name)
    table = ModelTable(evaluations=("before", "after"))
    claim = relation({"a": "before", "b": "after", "is": "higher"})
    alone: Any = {"before": Recipes(""), "after": Recipes("")}
    found = outcome_of(table, [claim], tmp_path, alone)
    assert found["relations"][0]["outcome"] == "HOLDS"
    assert [row["model"] for row in found["table"]["rows"]] == ["before", "after"]
    (tmp_path / "after/results.jsonl").unlink()
    with pytest.raises(DataError, match=r"after: no finished evaluation"):
        outcome_of(table, [], tmp_path, alone)


def test_judged_reads_nothing_anew(chain: Path):
    recipes: Any = {"eval": Recipes("a", "b")}
    evaluated = JudgedModels.of(chain, ModelScores(TABLE, recipes))
    (chain / "eval/a/results.jsonl").unlink()
    assert judged(relation({"is": "higher"}), evaluated)["outcome"] == "HOLDS"


# ---- what check says ---------------------------------------------------------------------------------------------


def said(table: dict[str, Any], relations: list[Relation], **recipes: Recipes) -> list[str]:
    made = ModelTable.model_validate(table)
    evaluations = ModelScores(made, recipes)  # type: ignore[arg-type]
    return evaluations.faults() + faults_with(relations, evaluations)


def test_names_that_no_evaluation_has_are_told_with_the_nearest():
    recipe = Recipes("r1_zero", "dev1", columns=ONE)
    table = {"evaluations": "eval", "rows": {"r1_zerro": "R1-Zero"}, "columns": {"reasonin": "Reasoning"}}
    wrong = relation({"a": "r1_zero", "b": "dev2", "is": "higher", "column": "resoning"})
    assert said(table, [wrong], eval=recipe) == [
        "table.rows.r1_zerro: no evaluation has a model 'r1_zerro' (did you mean 'r1_zero'?): r1_zero, dev1",
        "table.columns.reasonin: no evaluation has a column 'reasonin' (did you mean 'reasoning'?): reasoning",
        "relations.0.all.0.b: no evaluation has a model 'dev2' (did you mean 'dev1'?): r1_zero, dev1",
        "relations.0.all.0.column: no evaluation has a column 'resoning' (did you mean 'reasoning'?): reasoning",
    ]
    right = relation({"a": "r1_zero", "b": "dev1", "is": "higher"})
    assert said({"evaluations": "eval"}, [right], eval=recipe) == []


def test_a_score_that_two_stages_have_or_none_is_told():
    both = {"evaluations": ["one", "two"]}
    pair = relation({"is": "higher"})
    (twice,) = said(both, [], one=Recipes("a", columns=ONE), two=Recipes("a", "b", columns=ONE))
    assert twice == "table.evaluations: one and two both score model a in column reasoning; leave one out"
    (other,) = said(both, [pair], one=Recipes("a", asked=1), two=Recipes("b", asked=2))
    assert other.startswith("relations.0.all.0: stages one and two ask a and b otherwise")
    assert said(both, [pair], one=Recipes("a", asked=1), two=Recipes("b", asked=1)) == []
    (lacking,) = said(
        both, [pair], one=Recipes("a"), two=Recipes("b", columns={"instructions": COLUMNS["instructions"]})
    )
    assert lacking == "relations.0.all.0: no evaluation scores b in column 'reasoning'"
    assert "leaves no judged answers" in said({"evaluations": "one"}, [], one=Recipes())[0]
    assert "has no [columns]" in said({"evaluations": "one"}, [], one=Recipes("a", columns={}))[0]
    named_by_stage = relation({"a": "one", "b": "two", "is": "higher"})
    assert said(both, [named_by_stage], one=Recipes(""), two=Recipes("")) == []


def test_what_is_wrong_with_claims_by_themselves():
    same = relation({"b": "a", "is": "higher"})
    assert faults([same]) == ["relations.0.all.0.a and b are both 'a': name two models"]
    margin = relation({"is": "lower", "margin": 0.1})
    assert faults([margin, margin])[0].startswith('relations.0.all.0.margin: has no effect with is = "lower"')
    assert faults([margin, margin])[-1] == "relations.1.claim: 'B differs from A' stands there twice"
    table = ModelTable(evaluations=("evl",))
    doubled = ModelTable(evaluations="eval", rows={"a": "R1", "b": "R1"})
    assert doubled.faults(["eval"]) == ["table.rows: two are called 'R1'"]
    assert table.faults(["rl", "eval"]) == ["table.evaluations: no stage is named 'evl' (did you mean 'eval'?)"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"is": "above"}, r"all.0.is: input should be 'higher', 'lower' or 'not_lower' \(got 'above'\)"),
        ({"iss": "higher"}, r"all.0.iss: unknown key \(did you mean 'is'\?\); valid: a, b, column, is, margin"),
        ({"is": "not_lower", "margin": 3}, "all.0.margin: input should be less than 1"),
    ],
)
def test_a_part_is_spelt_as_the_file_spells_it(part: dict[str, Any], message: str):
    table = {"claim": "c", "all": [{"a": "a", "b": "b", "column": "reasoning", **part}]}
    with pytest.raises(ConfigError, match=message):
        raise_if_any(Path("p.toml"), [str(validate(Relation, table, Path("p.toml")))])
