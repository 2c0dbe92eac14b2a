"""A reward of the user's own: what it is given, what is refused with file and line, what it cannot break."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from model_folders import model
from pydantic import TypeAdapter
from typer.testing import CliRunner

from r1mega import cli
from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster
from r1mega.errors import ConfigError, RunDirError
from r1mega.recipe.load import load_recipe
from r1mega.rewards.judges import Judges
from r1mega.rewards.own import GIVEN, Own, faults, loads
from r1mega.rewards.pool import Pool
from r1mega.rewards.registry import Rewards, rubric_of
from r1mega.rewards.rubric import Rubric
from r1mega.runtime.digests import Digests
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason, Prompt, Verdict

RL = Path(__file__).parents[2] / "configs/tiny/r1_zero/1_rl.toml"
PROMPT = Prompt("p", "chain_sum", "4 - 1 =", "3", Int32s([1]), "<think>", {"seen": 7}, "math")
BREVITY = """\
def brevity(num_tokens, *, max_tokens):
    return max(0.0, 1.0 - num_tokens / max_tokens)
"""
ALL = """\
import json
from dataclasses import dataclass

@dataclass
class Told:
    what: "str"

def told(question, response, answer, truth, entry, domain, num_tokens, truncated, *, where):
    seen = [question, response, answer, truth, entry, domain, num_tokens, truncated]
    with open(where, "w") as file:
        file.write(Told(json.dumps(seen)).what)
    return True
"""
HOSTILE = """\
import math, os, sys, time

def hostile(response):
    match response.removeprefix("<think>"):
        case "exit":
            os._exit(3)
        case "leave":
            sys.exit("good bye")
        case "hang":
            time.sleep(1000)
        case "spin":
            while True:
                pass
        case "fill":
            return len([bytearray(10**7) for _ in range(10**6)])
        case "raise":
            return 1 / int("0")
        case "nan":
            return math.nan
        case "none":
            return None
        case "text":
            return "0.5"
    return 0.5
"""


def own(tmp_path: Path, source: str, function: str, **more: Any) -> Own:
    file = tmp_path / "my_reward.py"
    file.write_text(source)
    return Own(file=file, function=function, **more)


def completion(text: str, tokens: int = 2, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion("p", 0, Int32s.repeated(7, tokens), Float32s.repeated(-0.1, tokens), text, finish, 0, 0)


def judge(reward: Own, completions: Sequence[Completion], workers: int = 1) -> tuple[Verdict, ...]:
    rewards = {"mine": reward}
    with Pool(workers, preloaded=(), loads=loads(rewards)) as pool:
        return Judges(pool).judge(Rubric(rewards, "judge"), PROMPT, completions, 0).result()


def test_it_has_its_settings_and_is_weighed_as_any_reward(tmp_path: Path):
    reward = own(tmp_path, BREVITY, "brevity", settings={"max_tokens": 60}, weight=0.5)
    verdicts = judge(reward, [completion("", tokens) for tokens in (15, 60, 90)])
    assert [(v.status, v.reward, v.parts) for v in verdicts] == [
        ("scored", 0.375, {"mine": 0.75}), ("scored", 0.0, {"mine": 0.0}), ("scored", 0.0, {"mine": 0.0}),
    ]  # fmt: skip


def test_it_is_given_what_it_names_and_nothing_runs_in_this_process(tmp_path: Path):
    reward = own(tmp_path, ALL, "told", settings={"where": str(tmp_path / "told")})
    cut = completion("4-1</think><answer>3</answer>", 9, FinishReason.LENGTH)
    (verdict,) = judge(reward, [cut])
    assert (verdict.status, verdict.reward) == ("scored", 1.0)
    said = "<think>4-1</think><answer>3</answer>"
    assert json.loads((tmp_path / "told").read_text()) == ["4 - 1 =", said, "3", "3", {"seen": 7}, "math", 9, True]
    taken = own(tmp_path, "def all_of_it(**given):\n    return float(len(given))\n", "all_of_it", settings={"a": 1})
    assert judge(taken, [cut])[0].reward == len(GIVEN) + 1


def test_a_score_says_more_than_a_number(tmp_path: Path):
    source = "from r1mega.rewards.reward import unscorable\ndef f(truth):\n    return unscorable('no tests')\n"
    (verdict,) = judge(own(tmp_path, source, "f"), [completion("x")])
    assert (verdict.status, verdict.reason) == ("unscorable", "no tests")


def test_whatever_it_does_the_others_are_judged_and_the_fault_has_a_place(tmp_path: Path):
    reward = own(tmp_path, HOSTILE, "hostile", cpu_s=0.5, memory_mib=200)
    texts = ["exit", "well", "leave", "well", "spin", "fill", "well", "raise", "nan", "none", "text", "well"]
    found = judge(reward, [completion(text) for text in texts], workers=2)
    by_text = dict(zip(texts, found, strict=True))
    assert [v.reward for text, v in zip(texts, found, strict=True) if text == "well"] == [0.5] * 4
    for text, words in {
        "exit": "ended its worker", "spin": "more than 0.5 s", "fill": "more than 200 MiB",
    }.items():  # fmt: skip
        assert (by_text[text].status, by_text[text].reward) == ("scored", 0.0), text
        assert words in by_text[text].reason
    place = str(tmp_path / "my_reward.py")
    assert {text: by_text[text].reason for text in ("leave", "raise", "nan", "none", "text")} == {
        "leave": f"{place}:8: SystemExit: good bye",
        "raise": f"{place}:17: ZeroDivisionError: division by zero",
        "nan": "reward mine of a question of chain_sum gave nan",
        "none": f"{place}: hostile gave None, which is no number",
        "text": f"{place}: hostile gave a str ('0.5'), which is no number",
    }
    assert {by_text[text].status for text in ("leave", "raise", "nan", "none", "text")} == {"failed"}


def test_one_that_hangs_is_0_and_the_next_is_judged(tmp_path: Path):
    reward = own(tmp_path, HOSTILE, "hostile", wall_s=0.5)
    hung, well = judge(reward, [completion("hang"), completion("well")])
    assert (hung.status, hung.reward, hung.reason) == ("scored", 0.0, "mine: took more than 0.5 s")
    assert well.reward == 0.5


def test_it_runs_as_its_file_stood_when_the_config_was_read(tmp_path: Path):
    reward = own(tmp_path, "def f():\n    return 1\n", "f")
    before = reward.content()
    (tmp_path / "my_reward.py").write_text("def f():\n    return 2\n")
    assert judge(reward, [completion("")])[0].reward == 1
    again = Own(file=tmp_path / "my_reward.py", function="f")
    assert judge(again, [completion("")])[0].reward == 2
    assert again.content() != before and len(before) == 64


def test_loading_is_no_answers_time(tmp_path: Path):
    slow = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end:\n    pass\n"
    reward = own(tmp_path, slow + BREVITY, "brevity", settings={"max_tokens": 4}, cpu_s=0.3)
    assert judge(reward, [completion("", 1)])[0].reward == 0.75


FAULTY = {
    "syntax": ("def brevity(num_tokens):\n    return (1\n", {}, ":2: SyntaxError: '(' was never closed"),
    "import": ("import math\nimport no_such_library\n", {}, ":2: ModuleNotFoundError: No module named 'no_such_lib"),
    "no function": (
        "def brevty(num_tokens):\n    return 1\n", {},
        ": there is no function 'brevity' in it (did you mean 'brevty'?); its functions are brevty",
    ),
    "a number": ("brevity = 7\n", {}, ": brevity is no function, but a int (7)"),
    "unknown parameter": (
        "\n\ndef brevity(num_token):\n    return 1\n", {},
        ":3: brevity: takes 'num_token', which is neither given (question, response, answer, truth, entry, domain, "
        "num_tokens, truncated) nor one of its settings (did you mean 'num_tokens'?)",
    ),
    "a setting it wants": (BREVITY, {}, ":1: brevity: takes 'max_tokens', which is neither given"),
    "a setting it does not take": (
        BREVITY, {"max_tokens": 6, "min_tokens": 3},
        ":1: brevity: settings.min_tokens: it takes no such setting (did you mean 'max_tokens'?); it takes max_to",
    ),
    "a setting that is given": (
        "def brevity(truth):\n    return 1\n", {"truth": "x"},
        ":1: brevity: settings.truth: truth is what it is given",
    ),
    "by position": ("def brevity(response, /):\n    return 1\n", {}, ":1: brevity: takes response by position"),
    "async": ("async def brevity(response):\n    return 1\n", {}, ":1: brevity: should be a plain function"),
    "of C": ("brevity = max\n", {}, ":1: brevity: does not say what it takes (no signature found"),
    "end": ("import os\nos._exit(0)\n", {}, ": cannot be loaded: "),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_file_is_one_message_with_its_place(case: str, tmp_path: Path):
    source, settings, words = FAULTY[case]
    reward = own(tmp_path, source, "brevity", settings=settings)
    (said,) = faults({"mine": reward})
    assert said.startswith(f"rewards.mine: {tmp_path / 'my_reward.py'}{words}")


def test_a_sound_file_has_no_fault(tmp_path: Path):
    assert faults({"mine": own(tmp_path, BREVITY, "brevity", settings={"max_tokens": 6})}) == []
    default = "def brevity(num_tokens, max_tokens=9, **others):\n    return 1\n"
    assert faults({"mine": own(tmp_path, default, "brevity", settings={"more": 1})}) == []


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    (said,) = faults({"mine": Own(file=tmp_path / "none.py", function="f")})
    assert said == f"rewards.mine: file: {tmp_path / 'none.py'}: No such file or directory; name a Python file"


# ---- in a config ------------------------------------------------------------------------------------------------


def test_a_table_with_a_file_is_ones_own_whatever_it_is_called(tmp_path: Path):
    table = {"format": {"file": "rewards/f.py", "function": "f"}, "accuracy": 1.0}
    found = TypeAdapter(Rewards).validate_python(table, context={"folder": str(tmp_path)})
    assert found["format"] == Own(file=tmp_path / "rewards/f.py", function="f")
    dumped = {name: reward.model_dump(mode="json") for name, reward in found.items()}
    assert TypeAdapter(Rewards).validate_python(dumped) == found


def scored_rows(tmp_path: Path, reward: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    config = tmp_path / "rewards.toml"
    config.write_text(reward)
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(cli.app, ["score", "rubric", str(file), "-o", str(out), "--config", str(config)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return [json.loads(line) for line in out.read_text().splitlines()]


MINE = """\
[rewards.brevity]
file = "my_reward.py"
function = "brevity"
weight = 0.3
settings = { max_tokens = 60 }
"""


def test_score_judges_by_it(tmp_path: Path):
    (tmp_path / "my_reward.py").write_text(BREVITY)
    rows = [{"id": i, "response": "x", "num_tokens": n} for i, n in enumerate((15, 90))]
    *lines, summary = scored_rows(tmp_path, MINE, rows)
    assert [line["parts"] for line in lines] == [{"brevity": 0.75}, {"brevity": 0.0}]
    assert math.isclose(lines[0]["value"], 0.225) and summary["summary"]["scored"] == 2
    with pytest.raises(Exception, match=r"line 1: num_tokens is missing, and rewards\.brevity may ask how long"):
        scored_rows(tmp_path, MINE, [{"id": 1, "response": "x"}])


def test_score_refuses_what_check_refuses_and_verdicts_of_another_file(tmp_path: Path):
    (tmp_path / "my_reward.py").write_text("def brevity(nonsense):\n    return 1\n")
    config = tmp_path / "rewards.toml"
    config.write_text(MINE)
    with pytest.raises(ConfigError, match=r"my_reward.py:1: brevity: takes 'nonsense'"):
        rubric_of(config)
    (tmp_path / "my_reward.py").write_text(BREVITY)
    rows = [{"id": 1, "response": "x", "num_tokens": 15}]
    scored_rows(tmp_path, MINE, rows)
    (tmp_path / "my_reward.py").write_text(BREVITY + "\n# another file\n")
    with pytest.raises(Exception, match="holds other verdicts than of these rows"):
        scored_rows(tmp_path, MINE, rows)


def test_a_run_is_known_by_what_its_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, run, file = model(tmp_path / "base"), tmp_path / "run", tmp_path / "my_reward.py"
    file.write_text(BREVITY)

    def begin(file: Path) -> dict[str, Any]:
        reward = (f"rewards.mine.file={file}", "rewards.mine.function=brevity", "rewards.mine.settings.max_tokens=60")
        recipe = load_recipe(RL, [f"model.path={base}", *reward])
        RunDir(run, recipe, Cluster(device="cpu"), resume=True).close()
        (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
        return json.loads((run / "run.json").read_text())

    begun = begin(file)
    (recorded,) = begun["inputs"]["rewards.mine.file"]
    assert recorded["path"] == str(file) and recorded["digest"] == Digests().of(file)
    moved = file.rename(tmp_path / "elsewhere.py")
    assert begin(moved)["recipe"] == begun["recipe"]
    moved.write_text(BREVITY.replace("1.0 -", "2.0 -"))
    with pytest.raises(RunDirError, match=r"rewards\.mine\.file: other content than the run began with"):
        begin(moved)
