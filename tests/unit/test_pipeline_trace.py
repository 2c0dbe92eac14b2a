"""Where rows come from: a chain written by hand resolves whole, and every planted fault in it is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_by_hand import read_jsonl, sha256, signed, train_on, write_chain, write_jsonl

from r1mega.pipeline.trace_all import TraceCounts, trace_all


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain(tmp_path_factory.mktemp("by_hand"))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """In another place than it was made in: what lies outside of the chain stays where it was."""
    return write_chain(tmp_path / "made_in").rename(tmp_path / "moved")


def traced(chain: Path, run: str = "4_sft_800k") -> TraceCounts:
    return trace_all(chain / run, chain, silent=True)


def replace(file: Path, old: str, new: str, *, line: int = 0) -> None:
    lines = file.read_text().splitlines(keepends=True)
    at = line - 1 if line else next(i for i, text in enumerate(lines) if old in text)
    assert lines[at].count(old) >= 1
    lines[at] = lines[at].replace(old, new, 1)
    file.write_text("".join(lines))


@pytest.mark.parametrize("moved", [False, True])
def test_a_sound_chain_resolves_whole_wherever_it_lies(sound: Path, chain: Path, moved: bool):
    """Twelve rows stand in the mixture, of which the student learnt ten: eight were sampled, one of these also
    edited, two written anew, and two came from a plain file."""
    found = traced(chain if moved else sound)
    assert found.broken == [] and found.num_broken == 0
    assert (found.rows, found.sampled, found.imported) == (10, 8, 2)
    assert (found.edited, found.rewritten) == (1, 2)
    assert found.checkpoints == {"2_reasoning_rl (grpo), after 300 steps": 8}
    assert found.what == "trained on" and found.unread == {}


def test_rows_that_a_stage_wrote_are_traced_as_well(sound: Path):
    assert (traced(sound, "3_rejection_sampling").rows, traced(sound, "4_sft_800k_data").rows) == (12, 12)
    assert traced(sound, "3_rejection_sampling").num_broken == traced(sound, "4_sft_800k_data").num_broken == 0


def change_answer(chain: Path) -> None:
    replace(chain / "4_sft_800k_data/conversations.jsonl", "So: 00", "So: 01")


def change_provenance(chain: Path) -> None:
    replace(chain / "4_sft_800k_data/conversations.jsonl", '"repetition": 0.125', '"repetition": 0.025')


def change_a_digest(chain: Path) -> None:
    file = chain / "4_sft_800k_data/conversations.jsonl"
    replace(file, last := read_jsonl(file)[0]["sha256"], last[:-1] + "0123456789abcdef"[int(last[-1], 16) - 1])


def change_and_sign_again(chain: Path) -> None:
    """Of a chain whose every digest was made to fit: the journal knows what was sampled."""
    file = chain / "4_sft_800k_data/conversations.jsonl"
    first, *rest = read_jsonl(file)
    first["messages"][1]["content"] += "!"
    del first["sha256"]
    write_jsonl(file, [signed(first), *rest])
    shutil.rmtree(chain / "4_sft_800k/data")
    train_on(chain / "4_sft_800k", file, range(1, 11))


def change_the_file_behind_the_row(chain: Path) -> None:
    """The row says of its text what its text is, and the journal has another."""
    change_and_sign_again(chain)
    file = chain / "4_sft_800k_data/conversations.jsonl"
    first, *rest = read_jsonl(file)
    first["provenance"]["answer"]["text_sha256"] = sha256(first["messages"][1]["content"])
    del first["sha256"]
    write_jsonl(file, [signed(first), *rest])
    shutil.rmtree(chain / "4_sft_800k/data")
    train_on(chain / "4_sft_800k", file, range(1, 11))


def change_the_journal(chain: Path) -> None:
    replace(chain / "3_rejection_sampling/journal/version_0.jsonl", "So: 10", "So: 11")


def cut_the_journal(chain: Path) -> None:
    file = chain / "3_rejection_sampling/journal/version_0.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


def damage_the_journal(chain: Path) -> None:
    replace(chain / "3_rejection_sampling/journal/version_0.jsonl", '"policy"', '"polity"')


def sample_otherwise(chain: Path) -> None:
    replace(chain / "3_rejection_sampling/journal/version_0.jsonl", '"temperature": 0.7', '"temperature": 0.8')


def swap_answers(chain: Path) -> None:
    """Two answers of a question exchanged."""
    file = chain / "3_rejection_sampling/journal/version_0.jsonl"
    replace(file, "So: 00", "So: swap")
    replace(file, "So: 02", "So: 00")
    replace(file, "So: swap", "So: 02")


def lose_a_parent(chain: Path) -> None:
    (chain / "3_rejection_sampling/originals.jsonl").write_text("")


def change_a_parent(chain: Path) -> None:
    replace(chain / "3_rejection_sampling/originals.jsonl", "So: 01", "So: 09")


def swap_weights(chain: Path) -> None:
    (chain / "2_reasoning_rl/hf/model.safetensors").write_bytes(b"others!")


def lose_the_row(chain: Path) -> None:
    """From the mixture and from where it took it; all others move up."""
    for file in (chain / "4_sft_800k_data/conversations.jsonl", chain / "3_rejection_sampling/rows.jsonl"):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


def change_an_imported_row(chain: Path) -> None:
    """Its file lies beside the chain."""
    file = chain.parents[1] / "v3.jsonl"
    file.write_text(file.read_text().replace("Hello b", "Hello c"))


def tear_the_row(chain: Path) -> None:
    replace(chain / "4_sft_800k_data/conversations.jsonl", '"messages": [', '"messages": ')


PLANTED: dict[Callable[[Path], None], tuple[str, str, int]] = {
    change_answer: ("changed row", "4_sft_800k_data/conversations.jsonl, line 1:", 1),
    change_provenance: ("changed row", "4_sft_800k_data/conversations.jsonl, line 1:", 1),
    change_a_digest: ("changed row", "4_sft_800k_data/conversations.jsonl, line 1:", 1),
    tear_the_row: ("changed row", "4_sft_800k_data/conversations.jsonl, line 1:", 1),
    change_and_sign_again: ("another answer than was sampled", "answer 0 to own/0 with seed 1000", 1),
    change_the_file_behind_the_row: ("other text in the journal", "answer 0 to own/0 with seed 1000", 1),
    change_the_journal: ("other text in the journal", "answer 0 to own/1 with seed 2000", 1),
    cut_the_journal: ("missing journal entry", "answer 2 to own/0 with seed 1002", 3),
    damage_the_journal: ("missing journal entry", "answer 2 to own/0 with seed 1002", 3),
    sample_otherwise: ("other sampling settings in the journal", "answer 2 to own/0 with seed 1002", 3),
    swap_answers: ("other text in the journal", "answer 2 to own/0 with seed 1002", 2),
    lose_a_parent: ("missing parent", "3_rejection_sampling/rows.jsonl, line 11:", 2),
    change_a_parent: ("changed row", "3_rejection_sampling/originals.jsonl, line 1:", 1),
    swap_weights: ("unknown weights", "2_reasoning_rl/hf had them, and has other content now", 8),
    lose_the_row: ("row that is gone", "4_sft_800k_data/conversations.jsonl, line", 1),
    change_an_imported_row: ("changed file that was imported", "v3.jsonl, line 2, is not what it was", 1),
}
"""Fault -> how it is named, words of the message, and how many of the student's rows it breaks."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_and_named(plant: Callable[[Path], None], tmp_path: Path):
    chain = write_chain(tmp_path)
    plant(chain)
    found = traced(chain)
    kind, words, num = PLANTED[plant]
    assert dict(found.faults) == {kind: num}, found.broken
    assert (found.rows, found.num_broken) == (10, num)
    assert any(words in fault for _, faults in found.broken for fault in faults), found.broken


def test_a_folder_that_was_renamed_is_found_by_its_weights(chain: Path):
    (chain / "2_reasoning_rl").rename(chain / "rl_of_may")
    found = traced(chain)
    assert found.num_broken == 0
    assert found.checkpoints == {"rl_of_may (grpo), after 300 steps": 8}


def test_weights_that_are_gone_are_known_by_who_read_them(chain: Path):
    shutil.rmtree(chain / "2_reasoning_rl/hf")
    found = traced(chain)
    assert found.num_broken == 0
    assert list(found.checkpoints) == ["2_reasoning_rl (grpo), after 300 steps, whose folder is gone"]


def test_a_torn_last_line_of_a_journal_is_passed_over(chain: Path):
    """What a process was writing when it died; one further up is said."""
    file = chain / "3_rejection_sampling/journal/version_0.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole.splitlines(keepends=True)[0][:-20])
    assert (traced(chain).num_broken, traced(chain).notes) == (0, [])
    file.write_text(whole[: len(whole.splitlines()[0]) - 20] + "\n" + whole)
    found = traced(chain)
    assert found.num_broken == 0 and len(found.notes) == 1
    assert f"1 lines of journals are no entries, the first one {file.resolve()}, line 1" in found.notes[0]


def test_rows_that_moved_in_their_file_are_what_they_were(chain: Path):
    file = chain / "4_sft_800k_data/conversations.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[::-1]))
    found = traced(chain)
    assert (found.rows, found.num_broken, len(found.notes)) == (10, 0, 1)
    assert "10 rows stand at other lines" in found.notes[0]


def test_a_mixture_that_is_gone_is_made_up_for_by_what_it_was_made_of(chain: Path):
    """But for the imported rows, which it alone had."""
    (chain / "4_sft_800k_data/conversations.jsonl").unlink()
    found = traced(chain)
    assert (found.rows, dict(found.faults)) == (10, {"row that is gone": 2})


def test_many_broken_rows_are_counted_and_the_first_are_listed(tmp_path: Path):
    chain = write_chain(tmp_path)
    file = chain / "4_sft_800k_data/conversations.jsonl"
    rows: list[Any] = read_jsonl(file)
    write_jsonl(file, [rows[0]] * 50)
    shutil.rmtree(chain / "4_sft_800k/data")
    train_on(chain / "4_sft_800k", file, range(1, 51))
    (chain / "3_rejection_sampling/journal/version_0.jsonl").unlink()
    found = traced(chain)
    assert (found.rows, found.num_broken, len(found.broken)) == (50, 50, 20)


def test_a_copy_of_a_row_that_was_changed_is_not_taken_for_it(chain: Path):
    """Line 2 says that it is the row of line 1, whose digest it has."""
    file = chain / "4_sft_800k_data/conversations.jsonl"
    rows: list[Any] = read_jsonl(file)
    rows[1] = {**json.loads(json.dumps(rows[0])), "sha256": rows[0]["sha256"]}
    rows[1]["messages"][1]["content"] += "!"
    write_jsonl(file, rows)
    shutil.rmtree(chain / "4_sft_800k/data")
    train_on(chain / "4_sft_800k", file, range(1, 11))
    found = traced(chain)
    assert dict(found.faults) == {"changed row": 1} and found.num_broken == 1
    assert found.broken[0][0].endswith("conversations.jsonl, line 2")
