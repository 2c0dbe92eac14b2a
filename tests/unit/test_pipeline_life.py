"""`r1mega trace`: one row's life, told against what the chain written by hand is known to be, and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chain_by_hand import read_jsonl, signed, train_on, write_chain, write_jsonl

from r1mega import cli

ROOT = Path(__file__).parents[2]
SAMPLED = "3_rejection_sampling"


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    chain = write_chain(tmp_path)
    monkeypatch.chdir(tmp_path)
    return chain


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`r1mega trace` with arguments: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["r1mega", "trace", *arguments])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as left:
            code = left.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def digest(chain: Path, file: str, line: int) -> str:
    return read_jsonl(chain / file)[line - 1]["sha256"]


def test_an_edited_row_is_told_back_to_the_base(chain: Path, trace: Any):
    """Edited by hand, written anew by a template, sampled from what RL made of the base; and who learnt it."""
    code, told, _ = trace(digest(chain, "reviewed.jsonl", 1)[:8], "--in", "runs/r1")
    assert code == 0
    lines = [line.lstrip("│├└─ ") for line in told.splitlines()]
    in_order = iter(lines)
    wanted = [
        f"row {digest(chain, 'reviewed.jsonl', 1)[:12]}: runs/r1/4_sft_800k_data/conversations.jsonl, line 8",
        "assistant: <think>edited</think> So.",
        "verdict: by rule:math, value 1.0",
        "repetition: 0.125",
        "edited by ann",
        "before: assistant: <think>in fair words</think> So.",
        f"row {digest(chain, f'{SAMPLED}/rows.jsonl', 11)[:12]}: runs/r1/{SAMPLED}/rows.jsonl, line 11",
        f"row {digest(chain, f'{SAMPLED}/originals.jsonl', 1)[:12]}: runs/r1/{SAMPLED}/originals.jsonl, line 1",
        "answer 1: runs/r1/3_rejection_sampling/journal/version_0.jsonl, line 1",
        "sampling temperature 0.7, max_new_tokens 64, top_p 1.0, stop []",
        "answered by 2_reasoning_rl (grpo), after 300 steps",
        "run run of 2_reasoning_rl, recipe recipe of 2_reasoning_rl, commit c0ffee",
        "which began as base",
        "stands in runs/r1/reviewed.jsonl, line 1 as well",
        "taken by runs/r1/4_sft_800k_data (mixture)",
        "learnt by runs/r1/4_sft_800k (sft)",
        "resolves",
    ]
    for line in wanted:  # `in` goes on where the one before was found
        assert line in in_order, f"{line!r} is not where it should be in\n{told}"
    assert not {"\x1b", "\u2028"} & set(told)


def test_json_says_the_same(chain: Path, trace: Any):
    code, told, _ = trace("runs/r1/3_rejection_sampling/originals.jsonl:2", "--json")
    life = json.loads(told)
    assert code == 0 and life["resolves"] and life["intact"] and life["faults"] == []
    (rollout,) = life["rollouts"]
    assert (rollout["line"], rollout["answer"], rollout["seed"], rollout["asked_at_once"]) == (2, 1, 2001, 3)
    assert rollout["sampling"] == {"temperature": 0.7, "max_new_tokens": 64, "top_p": 1.0, "stop": []}
    (model,) = life["checkpoints"]
    assert model["made_by"]["steps"] == 300 and model["started_from"]["folder"] == str(chain.parents[1] / "base")
    made = digest(chain, "3_rejection_sampling/rows.jsonl", 12)
    assert made in [of["sha256"] for of in life["became"]]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("runs/r1/4_sft_800k:9", 9),
        ("runs/r1/4_sft_800k_data:9", 9),
        ("runs/r1/4_sft_800k_data/conversations.jsonl:9", 9),
    ],
)
def test_a_row_is_named_by_its_place(chain: Path, trace: Any, name: str, line: int):
    """Of what a student learnt, of what a stage wrote, and in a file; the imported row says where it was."""
    code, told, _ = trace(name)
    assert code == 0 and f"conversations.jsonl, line {line}\n" in told
    assert "imported from v3.jsonl, line 1" in told and "learnt by runs/r1/4_sft_800k (sft)" in told


def test_a_row_that_was_left_out_of_training_was_not_learnt(chain: Path, trace: Any):
    _, told, _ = trace("runs/r1/4_sft_800k_data:11")
    assert "not taken by runs/r1/4_sft_800k (sft)" in told and "learnt" not in told.replace("not learnt", "")


def test_a_changed_row_is_told_with_exit_code_1(chain: Path, trace: Any):
    file = chain / "4_sft_800k_data/conversations.jsonl"
    was = digest(chain, "4_sft_800k_data/conversations.jsonl", 1)
    file.write_text(file.read_text().replace("So: 00", "So: 0\\u001b", 1))
    code, told, _ = trace("runs/r1/4_sft_800k_data:1")
    assert code == 1 and told.startswith(f"row {was[:12]}, CHANGED since") and "\x1b" not in told
    code, told, _ = trace(
        was, "--in", "runs/r1"
    )  # by its name: the copy that is what it was, and what is said of others
    assert code == 1 and "conversations.jsonl, line 1: changed row" in told
    assert told.startswith(f"row {was[:12]}: runs/r1/3_rejection_sampling/rows.jsonl, line 1")


def test_all_rows_of_a_student(chain: Path, trace: Any):
    code, told, _ = trace("--all", "runs/r1/4_sft_800k")
    assert code == 0 and "runs/r1/4_sft_800k: 10 rows trained on, 10 resolve (100%)" in told
    code, told, _ = trace("--all", "runs/r1/4_sft_800k", "--json")
    assert json.loads(told)["resolved"] == 10
    (chain / "3_rejection_sampling/journal/version_0.jsonl").unlink()
    code, told, _ = trace("--all", "runs/r1/4_sft_800k")
    assert code == 1 and "10 rows trained on, 2 resolve (20%)" in told and "8 broken: missing journal entry" in told
    assert (
        "conversations.jsonl, line 8: by runs/r1/3_rejection_sampling/originals.jsonl, line 1: missing"
        in told.replace(f"{Path.cwd()}/", "")
    )


def test_a_run_that_did_not_write_down_its_rows_counts_all_of_its_files(chain: Path, trace: Any):
    """As versions before this one left it."""
    shutil.rmtree(chain / "4_sft_800k/data")
    code, told, _ = trace("--all", "runs/r1/4_sft_800k")
    assert code == 0 and "12 rows read, 12 resolve (100%)" in told and "did not write down which rows" in told


def test_rows_without_a_digest_of_their_own_are_held_against_what_was_written_down(chain: Path, trace: Any):
    plain = write_jsonl(chain.parents[1] / "plain.jsonl", [{"prompt": "a", "response": str(i)} for i in range(3)])
    run = chain / "4_sft_800k"
    record = json.loads((run / "run.json").read_text())
    record["inputs"]["data.files"] = [{"path": str(plain), "from_run": "../../../plain.jsonl", "digest": ""}]
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "data")
    train_on(run, plain, [1, 3])
    code, told, _ = trace("--all", "runs/r1/4_sft_800k")
    assert code == 0 and "2 rows trained on, 2 resolve (100%)" in told
    plain.write_text(plain.read_text().replace('"2"', '"3"'))
    code, told, _ = trace("--all", "runs/r1/4_sft_800k")
    assert code == 1 and "plain.jsonl, line 3: changed row" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("0123456789abcdef", "--in", "runs/r1"), "no row under runs/r1 has this sha256 (5 files of rows)"),
        (("01234",), "neither a row's sha256, 8 hexadecimal digits or more of it, nor FILE:LINE"),
        (("runs/r1/4_sft_800k_data:99",), "conversations.jsonl: has no line 99"),
        (("runs/r1/4_sft_800k:99",), "trained on 10 rows, and has no row 99"),
        (("runs/r1/2_reasoning_rl:1",), "neither wrote rows"),
        (("nothing.jsonl:1",), "nothing.jsonl: no such file of rows"),
        (("--all", "runs/r1"), "runs/r1: not a stage's run directory: it has no run.json"),
        (("--all", "runs/r1/2_reasoning_rl"), "a stage 'grpo' neither trains on rows nor writes any"),
        (("0123456789abcdef", "--in", "nowhere"), "nowhere: no such folder"),
        ((), "give a row (its sha256, or RUN_DIR:LINE), or --all RUN_DIR"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_message(chain: Path, trace: Any, arguments: tuple[str, ...], words: str):
    code, told, error = trace(*arguments)
    assert code == 2 and told == "" and words in error.replace(f"{Path.cwd()}/", ""), error


@pytest.mark.parametrize(
    "provenance",
    [
        "somebody", {"from": 3}, {"from": [3]}, {"from": "3"}, {"from": ["z" * 64]}, {"review": 3, "from": []},
        {"imported": 3}, {"imported": {}}, {"answers": 3, "policy": 3, "filters": 3, "from": ["0" * 64]},
    ],
)  # fmt: skip
def test_a_row_whose_provenance_has_no_form_does_not_resolve(chain: Path, trace: Any, provenance: Any):
    """Somebody's own, signed as rows are."""
    row = signed({"messages": read_jsonl(chain / SAMPLED / "rows.jsonl")[0]["messages"], "provenance": provenance})
    code, told, error = trace(str(write_jsonl(chain / "own.jsonl", [row])) + ":1", "--in", "runs/r1")
    assert code == 1 and "does not resolve" in told and error == ""
    assert any(kind in told for kind in ("row without an origin", "missing parent"))


def test_it_reaches_no_engine_and_no_trainer(chain: Path):
    loaded = "import sys, r1mega.pipeline.life, r1mega.pipeline.life_text; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "vllm", "megatron", "transformers", "datasets", "pyarrow"}
    assert heavy.isdisjoint(done.stdout.split())
