"""`r1mega score`: rows in, verdicts out, in order; refusals with their place; going on where it was ended."""

import json
from concurrent.futures import Future

import pytest
from typer.testing import CliRunner

from r1mega import cli
from r1mega.errors import ConfigError, DataError
from r1mega.rewards import rows as row_module
from r1mega.rewards import score as scoring
from r1mega.rewards.pool import TaskOutcome
from r1mega.rewards.registry import rubric_of
from r1mega.rewards.rows import Response, read_row
from r1mega.rewards.score import score

MATH = [
    ("a", r"<think>\boxed{9}</think> \boxed{\frac{2}{4}}", "1/2", 1.0),
    ("b", r"<think></think><answer>0.333</answer>", r"\frac{1}{3}", 0.0),
    ("c", "it is 5", "5", 0.0),
    ("d", r"\boxed{9^{9^{9^{9}}}}", "5", 0.0),
    ("e", r"\boxed{x=5}", "5", 1.0),
]
KNIGHTS = {
    "question": "q",
    "answer": "Amelia is a hero, and Elizabeth is a hero.",
    "metadata": {
        "source_dataset": "knights_knaves",
        "solution": [True, True],
        "names": ["Amelia", "Elizabeth"],
        "knight_knave_terms": {
            "knight": "hero",
            "knave": "villain",
            "a_knight": "a hero",
            "a_knave": "a villain",
            "Knight": "Hero",
            "Knave": "Villain",
        },
    },
}


@pytest.fixture(autouse=True)
def _in_place(monkeypatch):
    """Workers have tests of their own (test_rewards_pool); here rows are judged in this process."""

    class Here:
        def __init__(self, *_, **__): ...

        def submit(self, function, *arguments, limits=None):
            done = Future()
            done.set_result(TaskOutcome("done", function(*arguments)))
            return done

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

    monkeypatch.setattr(scoring, "Pool", Here)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def math_file(tmp_path):
    rows = [{"id": i, "response": response, "answer": answer} for i, response, answer, _ in MATH]
    return write(tmp_path / "rows.jsonl", rows)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mathematics(tmp_path):
    out = tmp_path / "out.jsonl"
    score("math", math_file(tmp_path), out, None)
    *verdicts, last = lines_of(out)
    assert [verdict["value"] for verdict in verdicts] == [value for *_, value in MATH]
    assert [verdict["id"] for verdict in verdicts] == [row[0] for row in MATH]
    assert all(set(v) == {"id", "verdict", "value", "parts", "reason", "seconds"} for v in verdicts)
    assert all(v["verdict"] == "scored" for v in verdicts)
    assert verdicts[2]["reason"] == "no answer"
    assert last["summary"] | {"seconds": 0, "of": ""} == {
        "kind": "math", "rows": 5, "scored": 5, "unscorable": 0, "failed": 0, "mean": 0.4, "seconds": 0, "of": "",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()].count(".out.jsonl.unfinished") == 0


def verdicts(kind, rows, tmp_path, rubric=None):
    out = tmp_path / "out.jsonl"
    score(kind, write(tmp_path / "rows.jsonl", rows), out, rubric)
    return [(line["verdict"], line["value"], line["parts"]) for line in lines_of(out)[:-1]]


def test_choices(tmp_path):
    rows = [
        {"id": 1, "response": r"\boxed{B}", "answer": "B"},
        {"id": 2, "response": "<answer>B or C</answer>", "answer": "B"},
        {"id": 3, "response": r"\boxed{B}", "answer": "twelve"},
    ]
    assert verdicts("choice", rows, tmp_path) == [
        ("scored", 1.0, {"accuracy": 1.0}), ("scored", 0.0, {"accuracy": 0.0}), ("unscorable", None, {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("style", "response", "value"),
    [
        ("r1_zero", "<think>a</think><answer>b</answer>", 1.0),
        ("r1_zero", " <think>a</think>\n<answer>b</answer>\n", 1.0),
        ("r1_zero", "<think>a</think>b", 0.0),
        ("r1_zero", "<answer>b</answer><think>a</think>", 0.0),
        ("r1_zero", "<Think>a</Think><answer>b</answer>", 0.0),
        ("r1", "<think>\na\n</think>\n\nb", 1.0),
        ("r1", "<think>a</think>", 0.0),
        ("r1", "a</think>b", 0.0),
        ("r1", "<think>a</think>b</think>c", 0.0),
        ("r1", "x<think>a</think>b", 0.0),
    ],
)
def test_formats(style, response, value, tmp_path):
    ((verdict, found, _),) = verdicts("format", [{"id": 1, "response": response, "style": style}], tmp_path)
    assert (verdict, found) == ("scored", value)


def test_languages(tmp_path):
    rows = [
        {"id": 1, "response": "<think>wir rechnen 然后</think>the end", "target_language": "zh"},
        {"id": 2, "text": "we stop here 然后", "response": "<think>停</think>", "target_language": "en"},
        {"id": 3, "text": "a closing tag </think> is read", "target_language": "en"},
        {"id": 4, "response": "we stop here", "target_language": "en"},
    ]
    found = verdicts("language", rows, tmp_path)
    assert found == [("scored", value, {"language": value}) for value in (0.5, 0.6, 1.0, 0.0)]


def test_reasoning_gyms_own_verifiers(tmp_path):
    right, wrong = KNIGHTS["answer"], "Amelia is a villain, and Elizabeth is a hero."
    unknown = KNIGHTS | {"metadata": {"source_dataset": "no_such_set"}}
    rows = [
        {"id": 1, "response": f"<answer>{right}</answer>", "entry": KNIGHTS},
        {"id": 2, "response": f"<answer>{wrong}</answer>", "entry": KNIGHTS},
        {"id": 3, "response": right, "entry": KNIGHTS},
        {"id": 4, "response": "<answer>().__class__</answer>", "entry": KNIGHTS},
        {"id": 5, "response": f"<answer>{right}</answer>", "entry": unknown},
    ]
    found = verdicts("reasoning-gym", rows, tmp_path)
    assert [value for _, value, _ in found] == [1.0, 0.0, 0.0, 0.0, None]
    assert 0 < found[1][2]["score"] < 1
    assert found[4][0] == "unscorable"


def test_a_rubric_of_a_config(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("[rewards]\naccuracy = 1.0\nformat = 0.5\n")
    rows = [
        {"id": 1, "response": "<think>a</think><answer>1</answer>", "answer": "1"},
        {"id": 2, "response": "<answer>1</answer>", "answer": "1", "verifier": "chain_sum", "entry": {}},
        {"id": 3, "response": "a</think><answer>2</answer>", "answer": "1", "prefill": "<think>"},
        {"id": 4, "response": "<think>a</think><answer>1</answer>", "answer": "1", "truncated": True},
    ]
    assert [value for _, value, _ in verdicts("rubric", rows, tmp_path, rubric_of(config))] == [1.5, 1.0, 0.5, 0.0]
    config.write_text("[rewards]\naccuracy = 1.0\n[objective]\ntruncated = 'judge'\n")
    assert rubric_of(config).truncated == "judge"
    for text, word in (("[rewards]\nno_such = 1", "no_such"), ("x = ", "config.toml"), ("", r"\[rewards\]")):
        config.write_text(text)
        with pytest.raises(ConfigError, match=word):
            rubric_of(config)


def test_a_rubric_of_a_config_is_that_of_the_steps_its_rows_name(tmp_path):
    """Format in the last 2 of 8 steps; an answer of 9 tokens under a limit of 8, from step 4 on 16 (buffer 4)."""
    config = tmp_path / "config.toml"
    limit = "max_new_tokens = [{ value = 8 }, { from_step = 4, value = 12 }]"
    rewards = "[rewards.format]\nlast_steps = 2\n[rewards.overlong]\nbuffer = 4\nweight = 2\n"
    config.write_text(f"num_steps = 8\n[sampling]\n{limit}\n{rewards}[objective]\ntruncated = 'judge'\n")
    rows = [
        {"id": step, "response": "<think>a</think><answer>1</answer>", "num_tokens": 9, "step": step}
        for step in (0, 3, 4, 5, 6)
    ]
    found = [value for _, value, _ in verdicts("rubric", rows, tmp_path, rubric_of(config))]
    assert found == [-2, -2, -0.5, -0.5, 0.5]
    config.write_text(f"[sampling]\n{limit}\n{rewards}")
    with pytest.raises(
        ConfigError, match=r"rewards\.format counts from the run's end: say num_steps, or give it from"
    ):
        rubric_of(config)
    config.write_text("[rewards.overlong]\nbuffer = 4\n")
    with pytest.raises(
        ConfigError, match=r"rewards\.overlong follows sampling.max_new_tokens, which is None: say how"
    ):
        rubric_of(config)


def test_a_rubrics_row_may_name_its_language(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("[rewards]\nlanguage = 1.0\n")
    thought = "<think>wir rechnen 然后</think>"
    rows = [{"id": i, "response": thought, "target_language": code} for i, code in enumerate(["zh", "de", "eo", ""])]
    found = [value for _, value, _ in verdicts("rubric", rows, tmp_path, rubric_of(config))]
    assert found == [0.5, 0.5, None, 0.0]


GOOD = {"id": 1, "response": "a", "answer": "1", "style": "r1", "entry": KNIGHTS, "target_language": "en"}


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        ("math", {"id": None}, "id"),
        ("math", {"id": 1.5}, "id"),
        ("math", {"response": 5}, "response"),
        ("math", {"answer": None}, "answer"),
        ("math", {"answer": ["1"]}, "answer"),
        ("choice", {"answer": True}, "answer"),
        ("format", {"style": "r2"}, "style"),
        ("format", {"style": None}, "style"),
        (
            "language",
            {"target_language": "eng"},
            "target_language: the language reward does not know 'eng'.*ISO 639-1",
        ),
        ("language", {"target_language": None}, "target_language"),
        ("language", {"response": 5}, "response"),
        ("language", {"text": 5}, "text"),
        ("reasoning-gym", {"entry": {}}, "entry"),
        ("reasoning-gym", {"entry": {"answer": "1"}}, "source_dataset"),
    ],
)
def test_a_malformed_row_is_refused_with_its_place(kind, change, word):
    read_row(kind, GOOD, "rows.jsonl, line 7", None)
    with pytest.raises(DataError, match=f"rows.jsonl, line 7: .*{word}"):
        read_row(kind, GOOD | change, "rows.jsonl, line 7", None)
    with pytest.raises(DataError, match="line 7"):
        read_row(kind, [1], "rows.jsonl, line 7", None)


def test_a_doubled_id_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="line 2: the id 1"):
        score("format", write(tmp_path / "a", [GOOD, GOOD]), None, None)
    with pytest.raises(DataError, match="no row"):
        score("format", write(tmp_path / "b", []), None, None)


def test_it_goes_on_behind_the_last_whole_line(tmp_path, monkeypatch):
    file, whole, out = math_file(tmp_path), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score("math", file, whole, None)
    judged = []
    plain = row_module.judge_math

    def counting(row):
        if len(judged) == 3 and not out.with_name("again").exists():
            raise KeyboardInterrupt
        judged.append(row.id)
        return plain(row)

    monkeypatch.setattr(scoring, "AHEAD", 1)
    monkeypatch.setattr(scoring, "JUDGES", {"math": counting})
    with pytest.raises(KeyboardInterrupt):
        score("math", file, out, None)
    assert judged == ["a", "b", "c"]
    with out.open("a") as torn:
        torn.write('{"id": "d", "verd')
    out.with_name("again").touch()
    before = len(lines_of_whole(out))
    summary = score("math", file, out, None)
    assert judged == ["a", "b", "c", *["c", "d", "e"][before - 2 :]]
    assert without_seconds(out) == without_seconds(whole)
    assert summary.rows == 5
    judged.clear()
    score("math", file, out, None)  # finished: nothing is judged again
    assert judged == []


def lines_of_whole(path):
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def without_seconds(path):
    return [{k: v for k, v in line.items() if k not in ("seconds", "summary")} for line in lines_of(path)]


def test_an_output_of_something_else_is_refused(tmp_path):
    file, out = math_file(tmp_path), tmp_path / "out.jsonl"
    score("math", file, out, None)
    other = write(tmp_path / "other.jsonl", [{"id": "a", "response": r"\boxed{1}", "answer": "2"}])
    with pytest.raises(DataError, match="other verdicts"):
        score("math", other, out, None)
    with pytest.raises(DataError, match="other verdicts"):
        score("choice", write(tmp_path / "c.jsonl", [GOOD]), out, None)
    out.write_text("notes of mine\n")
    with pytest.raises(DataError, match="other verdicts"):
        score("math", file, out, None)
    assert out.read_text() == "notes of mine\n"


def test_whose_fault_a_missing_verdict_is():
    row = Response("a", "")
    assert scoring.line_of(row, TaskOutcome("answer", reason="took more than 5 s"))["value"] == 0.0
    line = scoring.line_of(row, TaskOutcome("failed", reason="no worker"))
    assert (line["verdict"], line["value"], line["reason"]) == ("failed", None, "no worker")


def test_the_command(tmp_path):
    file = math_file(tmp_path)
    done = CliRunner().invoke(cli.app, ["score", "math", str(file), "-o", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 0
    assert len(lines_of(tmp_path / "out.jsonl")) == 6
    for arguments in (["rubric", str(file)], ["math", str(file), "--config", str(file)]):
        assert isinstance(CliRunner().invoke(cli.app, ["score", *arguments]).exception, ConfigError)
