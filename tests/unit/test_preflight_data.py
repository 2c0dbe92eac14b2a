"""Data files are read before anything starts, as the stage reads them; good ones are remembered by their digest."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from check_and_run import ROOT, both, stop_at_start, write_model
from own_questions import own

from r1mega import cli
from r1mega.data.conversations import Source
from r1mega.data.split import HELD_OUT
from r1mega.errors import R1MegaError
from r1mega.preflight import verdicts

RL, SFT = ROOT / "configs/tiny/r1_zero/1_rl.toml", ROOT / "configs/tiny/sft/1_qwen2.toml"
NOT_THERE = "model.config=configs/tiny/qwen2.json", "model.path=/nowhere/hf"
RL_SETTINGS = (
    "rollout.num_prompts=4", "questions.0.num=60", "evaluation.questions.0.num=10", "prompt.template=r1_zero",
    "batch.chunk_tokens=1024", "sampling.max_new_tokens=64",
)  # fmt: skip
GOOD = [{"task": "gcd", "question": f"gcd of {n} and {n}?", "truth": str(n)} for n in range(2, 30)]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_at_start(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hf"))


def lines(file: Path, *rows: object) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


QUESTIONS = {
    "other names": (
        ({"problem": "What is $1+1$?", "answer": "2"},),
        r"line 1: no column 'question': its columns are",
    ),
    "unknown verifier": (
        ({**GOOD[0], "task": "astrology"},),
        r"1 question\(s\) of a verifier that there is not\n  line 1: 'astrology'",
    ),
    "no JSON": (("[",), "line 1: not JSON"),
    "half a character": (({**GOOD[0], "question": "1 + 1? \ud83d"},), "line 1: column 'question': half a character"),
    "an empty file": ((), "holds no questions"),
    "asked twice": ((*GOOD, GOOD[3]), r"line 29 asks what .*mine.jsonl, line 4 asks"),
    "too few": (GOOD[:3], r"questions.* to train on, fewer than a rollout's rollout.num_prompts = 4"),
    "LaTeX": (
        (*GOOD, {"task": "gcd", "question": "a?", "truth": "\\frac{1}{2}"}),
        r"line 29: truth '.*frac.*of verifier gcd",
    ),
    "a unit": (({"task": "gcd", "question": "b?", "truth": "12 apples"}, *GOOD), r"line 1: truth '12 apples'"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions_are_read_before_weights_are_asked_for(case: str, tmp_path: Path, capsys):
    rows, wanted = QUESTIONS[case]
    file = lines(tmp_path / "mine.jsonl", *rows)
    overrides = [*NOT_THERE, *RL_SETTINGS, own(file)]
    checked, ran = both(RL, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2
    assert str(file) in checked[1]
    assert re.search(wanted, checked[1]), checked[1]


def test_good_questions_pass_and_weights_are_asked_for_then(tmp_path: Path, capsys):
    file = lines(tmp_path / "mine.jsonl", *GOOD)
    checked, ran = both(RL, [*NOT_THERE, *RL_SETTINGS, own(file)], tmp_path / "run", capsys)
    assert checked[0] == 0 and "model.path: /nowhere/hf is not there yet" in checked[1]
    assert ran[0] == 2 and "model.path: /nowhere/hf is not there yet" in ran[1]
    checked, ran = both(RL, [*NOT_THERE, *RL_SETTINGS, own(tmp_path / "none.jsonl")], tmp_path / "run", capsys)
    assert checked[0] == 0 and f"questions.0.path: {tmp_path}/none.jsonl: not there yet; put it there" in checked[1]
    assert ran[0] == 2 and "2 things are not there yet" in ran[1]


def test_a_question_is_too_long_by_the_models_tokenizer(folder: Path, tmp_path: Path, capsys):
    long = {"task": "gcd", "question": "of " + "17, " * 300 + "?", "truth": "17"}
    file = lines(tmp_path / "mine.jsonl", *GOOD, long)
    overrides = [f"model.path={folder}", *RL_SETTINGS, own(file)]
    checked, ran = both(RL, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2
    assert f"{file}, line 29: " in checked[1] and 'too_long = "drop"' in checked[1]
    overrides.append("questions.0.too_long=drop")
    assert both(RL, overrides, tmp_path / "run", capsys) == ((0, ""), (0, ""))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("{min_tems=3}", "no parameter min_tems (did you mean 'min_terms'?)"),
        ("{min_terms=2.5}", "min_terms of kind int, not 2.5"),
        ("{min_terms=9,max_terms=3}", "max_terms must be >= min_terms"),
        ("{min_terms=2,max_terms=2,min_digits=1,max_digits=1}", "different questions asked for"),
    ],
)
@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ("tiny/r1_zero/0_base", "tasks"), ("tiny/r1_zero/1_rl", "questions"),
        ("tiny/r1_zero/1_rl", "evaluation.questions"), ("tiny/r1_zero/2_eval", "evaluation.questions"),
    ],
)  # fmt: skip
def test_what_tasks_cannot_make_is_refused(
    config: str, setting: str, parameters: str, said: str, tmp_path: Path, capsys
):
    file = ROOT / f"configs/{config}.toml"
    if "different" in said and "base" in config:
        return  # pretraining may repeat a question
    overrides = [f"{setting}.0.params={parameters}", *(NOT_THERE if "base" not in config else ())]
    checked, ran = both(file, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and said in checked[1]


def talk(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TALKS = [talk(f"{n} + 1 =", f"<think>\n{n}+1={n + 1}\n</think>\n\n{n + 1}") for n in range(40)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}<|endoftext|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
CONVERSATIONS = {
    "no JSON": ("{", "line 41: not JSON"),
    "unknown field": ({**TALKS[0], "messages": [{**TALKS[0]["messages"][0], "wieght": 0}, TALKS[0]["messages"][1]]},
                      "line 41: message 0: unknown field 'wieght'"),
    "ends with the user": ({"messages": TALKS[0]["messages"][:1]}, "line 41: ends with the user's turn"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_conversations_are_read_before_weights_are_asked_for(case: str, tmp_path: Path, capsys):
    row, said = CONVERSATIONS[case]
    file = lines(tmp_path / "talks.jsonl", *TALKS, row)
    checked, ran = both(SFT, [*NOT_THERE, f"data.files=['{file}']"], tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2
    assert f"data: {file}, {said}" in checked[1]


def test_conversations_are_tokenised_where_the_tokenizer_is(folder: Path, tmp_path: Path, capsys):
    """`run` leaves that to the stage, which does it first."""
    file = lines(tmp_path / "talks.jsonl", *TALKS, talk("long?", "1" * 400))
    overrides = [f"model.path={folder}", f"data.files=['{file}']", "data.too_long=error"]
    checked, _ = both(SFT, overrides, tmp_path / "run", capsys)
    assert checked[0] == 2 and "the tokenizer has no chat template" in checked[1]
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    overrides.append(f"chat_template={tmp_path}/t.jinja")
    checked, ran = both(SFT, overrides, tmp_path / "run", capsys)
    assert checked[0] == 2 and ran == (0, "")
    assert f"{file}, line 41: " in checked[1] and "tokens are more than data.max_tokens" in checked[1]
    overrides[2] = "data.too_long=drop"
    assert both(SFT, overrides, tmp_path / "run", capsys)[0] == (0, "")


def test_no_conversations_are_too_few(tmp_path: Path, capsys):
    file = lines(tmp_path / "talks.jsonl", "")
    checked, ran = both(SFT, [*NOT_THERE, f"data.files=['{file}']"], tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and "train: no conversations" in checked[1]


def test_conversations_to_validate_on_that_are_trained_on_are_said(tmp_path: Path, capsys, caplog):
    file, own = lines(tmp_path / "talks.jsonl", *TALKS), lines(tmp_path / "own.jsonl", TALKS[0], talk("else?", "1"))
    names = [f"data.files=['{file}']", f"validation.files=['{own}']", "validation.share=0"]
    checked, _ = both(SFT, [*NOT_THERE, *names], tmp_path / "run", capsys)
    assert checked[0] != 2 and "validation: 2 read, of them 1 asked in training and left out" in caplog.text
    own = lines(tmp_path / "own.jsonl", TALKS[0])
    checked, _ = both(SFT, [*NOT_THERE, *names], tmp_path / "run", capsys)
    assert checked[0] == 2 and f"trained on, the first at {own}, line 1" in checked[1]


# ---- verdicts -------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry each time that conversations are read."""
    seen: list[int] = []
    rows = Source.__iter__
    monkeypatch.setattr(Source, "__iter__", lambda self: (seen.append(1), rows(self))[1])
    return seen


def check_talks(file: Path, *overrides: str) -> None:
    cli.check(SFT, "laptop", [*NOT_THERE, f"data.files=['{file}']", *overrides])


def test_a_verdict_holds_as_long_as_nothing_changes(reads: list[int], tmp_path: Path, monkeypatch):
    file = lines(tmp_path / "talks.jsonl", *TALKS)
    check_talks(file)
    check_talks(file)
    assert len(reads) == 1
    stat = file.stat()
    same_size = file.read_text().replace("39+1=40", "39+1=49")
    file.write_text(same_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    check_talks(file)
    assert len(reads) == 2  # other bytes of the same size and time
    check_talks(file, "validation.share=0.2")
    assert len(reads) == 3
    check_talks(file, "optimizer.lr=0.1")
    assert len(reads) == 3  # which rows do not depend on
    monkeypatch.setattr(verdicts, "_program", lambda: ["another version of it"])
    check_talks(file)
    assert len(reads) == 4


def test_what_is_left_out_is_told_by_every_check(reads: list[int], tmp_path: Path, caplog):
    asked = [f"State the final answer to the following arithmetic problem: {n} + 1 =" for n in range(40)]
    theirs = sum(text in HELD_OUT for text in asked)
    assert 0 < theirs < 20
    file = lines(tmp_path / "talks.jsonl", *TALKS, *(talk(text, "4") for text in asked))
    for _ in range(2):
        caplog.clear()
        check_talks(file)
        # 3 are of the share that is validated on.
        assert caplog.messages == [f"data: 77 read, of them {theirs} of the held-out side and left out"]
    assert len(reads) == 1
    mine = lines(tmp_path / "own.jsonl", *({"task": "chain_sum", "question": text, "truth": "4"} for text in asked))
    for _ in range(2):
        caplog.clear()
        cli.check(RL, "laptop", [*NOT_THERE, *RL_SETTINGS, own(mine), "rollout.num_prompts=2"])
        assert f"{theirs} " in caplog.messages[-1] and "held-out side" in caplog.messages[-1]
    assert caplog.messages == [f"questions, own: 40 read, of them {theirs} of the held-out side and left out"]


def test_a_fault_is_found_again_and_a_cache_that_cannot_be_written_is_done_without(
    reads: list[int], tmp_path: Path, monkeypatch, caplog
):
    file = lines(tmp_path / "talks.jsonl", *TALKS, "{")
    for _ in range(2):
        with pytest.raises(R1MegaError, match="line 41"):
            check_talks(file)
    assert len(reads) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(verdicts, "cache_dir", lambda: tmp_path / "file/cache")
    for _ in range(2):
        check_talks(lines(tmp_path / "talks.jsonl", *TALKS))
    assert len(reads) == 4 and "is not kept" in caplog.text


def test_a_tokenizer_is_part_of_the_verdict(folder: Path, tmp_path: Path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "hf")
    asked: list[object] = []
    answer = SimpleNamespace(counts={})
    monkeypatch.setattr("r1mega.stages.questions.ask", lambda stage: (asked.append(stage), answer)[1])
    overrides = [f"model.path={tmp_path}/hf", *RL_SETTINGS]
    for _ in range(2):
        cli.check(RL, "laptop", overrides)
    settings = tmp_path / "hf/tokenizer_config.json"
    settings.write_text(settings.read_text() + " ")
    cli.check(RL, "laptop", overrides)
    assert len(asked) == 2


@pytest.mark.parametrize(("end", "said"), [("x", "eos_token_id = ["), (99_999, "eos_token_id 99999 of")])
def test_ends_that_are_none_are_refused_before_an_engine_starts(folder: Path, tmp_path: Path, capsys, end, said):
    shutil.copytree(folder, tmp_path / "hf")
    stated = json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    (tmp_path / "hf/generation_config.json").write_text(json.dumps({"eos_token_id": [stated, end]}))
    overrides = [f"model.path={tmp_path}/hf", *RL_SETTINGS]
    checked, ran = both(RL, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and said in checked[1]


def test_a_dataset_by_name_is_said_to_be_unseen(tmp_path: Path, capsys):
    overrides = [*NOT_THERE, "data.files=[]", "data.dataset=org/name"]
    checked, _ = both(SFT, overrides, tmp_path / "run", capsys)
    assert checked[0] == 0 and "data.dataset: 'org/name', split 'train', is on the hub" in checked[1]
