"""What the stages themselves leave is traced: rows that a rejection run had rewritten, that people edited, that a
mixture took and that SFT took up, in a chain that was moved; and preference pairs."""

import json
from pathlib import Path
from typing import Any

import preference_run
import pytest
import rejection_run
from check_and_run import ROOT, write_model
from endpoint_server import EndpointServer
from mixture_run import mixed
from mixture_run import write as write_rows
from preference_run import rows
from rejection_run import CONFIG, Server
from rewrite_run import ALL, REWRITE, say
from sft_data import sft_config

from r1mega.config.cluster import Cluster
from r1mega.data.chat import Chat
from r1mega.data.review import apply_review, queue_lines, read_queue
from r1mega.data.sft_data import Wanted, prepare
from r1mega.data.tokenizer import load_tokenizer
from r1mega.pipeline.life import trace
from r1mega.pipeline.trace_all import trace_all
from r1mega.runtime.run_dir import RunDir

TEMPLATE = ROOT / "configs/chat_templates/qwen.jinja"
TABLES = '[[data]]\nfiles = ["reviewed.jsonl"]\n[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n'


def reviewed(file: Path, out: Path) -> None:
    """The first row edited and the second accepted, as people do it in a queue."""
    lines = [line.to_json() for line in queue_lines((row, str(file)) for row in rows(file.parent, file.name))]
    lines[0] |= {"decision": "edit", "answer": lines[0]["answer"] + " Indeed.", "reviewer": "ann"}
    lines[1] |= {"decision": "accept", "reviewer": "bob"}
    queue = write_rows(out.with_name("queue.jsonl"), lines[:2])
    write_rows(out, apply_review(rows(file.parent, file.name), read_queue(queue)).rows)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages of a chain, moved to another folder when all were done."""
    folder = tmp_path_factory.mktemp("chain")
    model = write_model(tmp_path_factory.mktemp("model"))
    with Server(say) as server:
        config = rejection_run.write(folder, server, CONFIG + REWRITE)
        rejection_run.run(config, folder / "sampled", *ALL, "rewrite.on_failure=keep_original")
    reviewed(folder / "sampled/rows.jsonl", folder / "reviewed.jsonl")
    write_rows(folder / "plain.jsonl", [{"prompt": f"Hello {i}", "response": "Hi."} for i in range(4)])
    made = mixed(folder, TABLES, name="data") / "conversations.jsonl"
    recipe = sft_config(
        model, made, data={"files": [str(made)], "max_tokens": 4096}, validation={"share": 0.2, "every_steps": 4}
    )
    run_dir = RunDir(folder / "student", recipe, Cluster(device="cpu"), resume=False)
    tokenizer = load_tokenizer(model)
    chat = Chat(tokenizer, (tokenizer.eos_token_id,), TEMPLATE)
    prepare(Wanted(recipe.data, recipe.validation, 0), chat, run_dir.path / "data", run_dir.path / "trained_on.jsonl")
    run_dir.close()
    return folder.rename(folder.with_name("moved"))


def traced(chain: Path, run: str) -> Any:
    return trace_all(chain / run, chain, silent=True)


def test_all_that_a_student_learns_resolves(chain: Path):
    """Counted from the files by hand: which rows it took, which of them were sampled, edited and rewritten."""
    taken = [line.split() for line in (chain / "student/data/train/rows.txt").read_text().splitlines()]
    mixture = rows(chain / "data", "conversations.jsonl")
    learnt = [mixture[int(line) - 1]["provenance"] for _, _, line in taken]
    assert 0 < len(learnt) < len(mixture)  # some are validated on
    found = traced(chain, "student")
    assert found.broken == []
    assert (found.rows, found.imported) == (len(learnt), sum("imported" in of for of in learnt))
    assert found.sampled == found.rows - found.imported > 0
    assert found.rewritten == sum("rewrite" in of for of in learnt) > 0
    (who,) = found.checkpoints
    assert who.startswith("policy at http://127.0.0.1")


def test_all_that_the_stages_wrote_resolves(chain: Path):
    sampled, data = traced(chain, "sampled"), traced(chain, "data")
    assert sampled.broken == data.broken == []
    assert sampled.rows == sampled.sampled == len(rows(chain / "sampled", "rows.jsonl")) > 4
    assert (data.edited, data.accepted, data.imported) == (1, 1, 4)
    assert data.rows == sampled.rows + 4


def test_an_edited_rows_life_goes_back_to_the_journal(chain: Path):
    edited = next(
        number
        for number, row in enumerate(rows(chain / "data", "conversations.jsonl"), 1)
        if row["provenance"].get("review", {}).get("decision") == "edited"
    )
    life = trace(f"{chain}/data:{edited}", chain)
    assert life["resolves"], life["faults"]
    while life["from"]:
        (life,) = life["from"]
    (rollout,) = life["rollouts"]
    entry = json.loads(Path(rollout["journal"]).read_text().splitlines()[rollout["line"] - 1])
    assert entry["answers"][0]["text"] == life["messages"][-1]["content"]


@pytest.mark.parametrize("at", [0, 7, 30, -30, -7])
def test_a_byte_of_any_row_is_found(chain: Path, at: int):
    """Of the mixture's file, at places near both ends of a line."""
    file = chain / "data/conversations.jsonl"
    was = file.read_bytes()
    first = int((chain / "student/data/train/rows.txt").read_text().split()[2])
    lines = was.splitlines(keepends=True)
    line = bytearray(lines[first - 1])
    line[at] ^= 1
    file.write_bytes(b"".join([*lines[: first - 1], bytes(line), *lines[first:]]))
    try:
        found = traced(chain, "student")
    finally:
        file.write_bytes(was)
    assert (found.num_broken, list(found.faults)) == (1, ["changed row"])
    assert found.broken[0][0].endswith(f"conversations.jsonl, line {first}")


def test_a_row_that_was_stripped_of_its_origin_is_no_imported_one(chain: Path):
    """In a file that a stage wrote, where every row is signed."""
    file = chain / "data/conversations.jsonl"
    was = file.read_bytes()
    lines = was.splitlines(keepends=True)
    row = {name: value for name, value in json.loads(lines[1]).items() if name not in ("provenance", "sha256")}
    file.write_bytes(b"".join([lines[0], json.dumps(row).encode() + b"\n", *lines[2:]]))
    try:
        found = traced(chain, "data")
    finally:
        file.write_bytes(was)
    assert (found.num_broken, list(found.faults)) == (1, ["row without an origin"])
    assert found.broken[0][0].endswith("conversations.jsonl, line 2")


def test_preference_pairs_and_marks_resolve_to_both_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is judged of an answer is its summary, of a marked one all of it."""
    monkeypatch.setenv("A_KEY", "secret")
    with EndpointServer(preference_run.say) as server:
        config = preference_run.write(tmp_path, server)
        preference_run.run(config, tmp_path / "pairs", "pairs.balance=none")
        preference_run.run(config, tmp_path / "marks", "label=safety", "pairs.per_question=1")
    for run in ("pairs", "marks"):
        found = traced(tmp_path, run)
        assert found.broken == [] and found.sampled == found.rows > 4
    chosen = rows(tmp_path / "pairs", "pairs.jsonl")[0]["chosen"]
    for run in ("pairs", "marks"):  # each has the same answers of the same model
        journal = tmp_path / run / "journal/version_0.jsonl"
        journal.write_text(journal.read_text().replace(chosen, chosen + "!"))
    found = traced(tmp_path, "pairs")
    assert set(found.faults) == {"other text in the journal"} and 0 < found.num_broken < found.rows
