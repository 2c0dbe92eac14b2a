"""A chain of run directories written by hand in the forms of the stages: a model that RL made answers, its answers
are sifted, written anew and edited, rows of a plain file come to them, and a student learns the mixture."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.buffers import Float32s, Int32s
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.journal import Journal
from r1mega.rollout.segment import Key
from r1mega.runtime.digests import Digests, digest_of
from r1mega.runtime.provenance import Lineage
from r1mega.samples import Completion, FinishReason, Prompt

Row = dict[str, Any]
PARAMS = SamplingParams(temperature=0.7, max_new_tokens=64)
PREFILL = "<think>\n"
NUM_QUESTIONS, NUM_ANSWERS = 5, 3


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def signed(row: Row) -> Row:
    """As the rows' form says, worked out here."""
    return {**row, "sha256": sha256(json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False))}


def text(question: int, answer: int) -> str:
    return f'it is "{question}" and\n{answer} \u2028 é</think> So: {question}{answer}'


def write_jsonl(file: Path, rows: Sequence[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_jsonl(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_model(folder: Path, weights: bytes) -> str:
    """A folder of weights of no known form; its digest."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return Digests().of(folder)


def write_run(
    folder: Path, stage: Row, start: str = "", inputs: Mapping[str, Sequence[Path]] | None = None, steps: int = 0
) -> Path:
    """What a stage says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    lineage = Lineage(start, f"recipe of {folder.name}", (f"run of {folder.name}",))
    named = {
        setting: [
            {
                "path": str(path),
                "from_run": str(Path("..") / path.relative_to(folder.parent))
                if path.is_relative_to(folder.parent)
                else "../gone",
                "digest": Digests().of(path),
            }
            for path in paths
        ]
        for setting, paths in (inputs or {}).items()
    }
    run = {**lineage.record(), "inputs": named, "parts": [{"commit": "c0ffee", "seed": 0}]}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.json").write_text(json.dumps({"stage": stage, "cluster": {}}))
    (folder / "summary.json").write_text(json.dumps({"stage": stage["stage"], "steps": steps}))
    return folder


def request(question: int) -> Request:
    prompt = Prompt(f"own/{question}", "none", f"Question {question}?", "", Int32s([question, 7]), prefill=PREFILL)
    return Request(prompt, NUM_ANSWERS, seed=1000 * (question + 1))


def write_journal(folder: Path, start: str) -> None:
    """Every question's answers, by the journal itself."""
    with Journal(folder) as journal:
        for question in range(NUM_QUESTIONS):
            asked = request(question)
            key = Key.of(asked, PARAMS, version=0, policy=digest_of(start))
            answers = tuple(
                Completion(
                    asked.prompt.id, i, Int32s([1, 2]), Float32s([-0.5, -0.25]), text(question, i),
                    FinishReason.STOP, 0, asked.seed + i,
                )
                for i in range(NUM_ANSWERS)
            )  # fmt: skip
            journal.add(key, answers)


def row(question: int, answer: int, start: str) -> Row:
    """Of rows.jsonl."""
    whole = PREFILL + text(question, answer)
    return signed(
        {
            "messages": [
                {"role": "user", "content": f"Question {question}?"},
                {"role": "assistant", "content": whole},
            ],
            "provenance": {
                "question": {"id": f"own/{question}", "source": "own", "domain": "math", "verifier": "math"},
                "policy": {
                    "model": "runs/2_reasoning_rl/hf", "start": start, "weight_version": 0,
                    "asked_as": "<|user|>{question}<|assistant|>" + PREFILL,
                },
                "sampling": {"temperature": 0.7, "max_new_tokens": 64, "top_p": 1.0, "stop": [], "n": 3, "seed": 0},
                "answer": {
                    "index": answer, "seed": 1000 * (question + 1) + answer, "tokens": 2,
                    "text_sha256": sha256(whole),
                },
                "verdict": {"by": "rule:math", "value": 1.0},
                "filters": {"repetition": 0.125},
                "thinking": "written",
                "from": [],
            },
        }
    )  # fmt: skip


def made_of(parent: Row, said: str, **more: Any) -> Row:
    """A row in which another answer stands."""
    messages = [parent["messages"][0], {"role": "assistant", "content": said}]
    provenance = {**parent["provenance"], **more, "from": [parent["sha256"]]}
    return signed({"messages": messages, "provenance": provenance})


def imported(raw: Row, line: int) -> Row:
    """A row of a plain file, as a mixture takes it."""
    provenance = {
        "question": {"id": "x", "source": "v3.jsonl", "domain": "general", "verifier": "none"},
        "imported": {"file": "v3.jsonl", "line": line, "sha256": signed(raw)["sha256"]},
        "from": [],
    }
    return signed({"messages": raw["messages"], "provenance": provenance})


def train_on(folder: Path, file: Path, lines: Sequence[int]) -> None:
    """What a training stage leaves of the rows that it took."""
    data = folder / "data/train"
    data.mkdir(parents=True)
    rows = read_jsonl(file)
    listed = (f"{signed({k: v for k, v in rows[n - 1].items() if k != 'sha256'})['sha256']} 0 {n}\n" for n in lines)
    (data / "rows.txt").write_text("".join(listed))
    (data / "store.json").write_text(json.dumps({"key": "", "digest": "", "places": [f"{file}, line"]}))


def write_chain(folder: Path) -> Path:
    """Folder runs/r1 of it: 2_reasoning_rl, 3_rejection_sampling, 4_sft_800k_data and 4_sft_800k, which learns all
    rows of that but the last two."""
    chain = folder / "runs/r1"
    base = write_model(folder / "base", b"base")
    write_run(chain / "2_reasoning_rl", {"stage": "grpo"}, base, {"model.path": [folder / "base"]}, steps=300)
    start = write_model(chain / "2_reasoning_rl/hf", b"trained")
    model = chain / "2_reasoning_rl/hf"
    answers = {"marks": ["<think>", "</think>"]}
    rejection = write_run(
        chain / "3_rejection_sampling", {"stage": "rejection", "answers": answers}, start, {"model.path": [model]}
    )
    write_journal(rejection / "journal", start)
    plain = [row(question, answer, start) for question in range(NUM_QUESTIONS) for answer in (0, 2)]
    originals = [row(question, 1, start) for question in range(2)]
    rewritten = [
        made_of(o, "<think>in fair words</think> So.", rewrite={
            "by": "template", "of_sha256": o["provenance"]["answer"]["text_sha256"]})
        for o in originals
    ]  # fmt: skip
    write_jsonl(rejection / "originals.jsonl", originals)
    write_jsonl(rejection / "rows.jsonl", [*plain, *rewritten])
    edited = made_of(
        rewritten[0], "<think>edited</think> So.",
        review={"reviewer": "ann", "decision": "edited", "original": rewritten[0]["messages"]},
    )  # fmt: skip
    write_jsonl(chain / "reviewed.jsonl", [edited])
    raw = [
        {"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": "Hi"}]}
        for i in "ab"
    ]
    write_jsonl(folder / "v3.jsonl", raw)
    files = [rejection / "rows.jsonl", chain / "reviewed.jsonl", folder / "v3.jsonl"]
    data = write_run(chain / "4_sft_800k_data", {"stage": "mixture"}, "", {"data.0.files": files})
    mixed = [*plain[:6], rewritten[1], edited, *(imported(one, n) for n, one in enumerate(raw, 1)), *plain[6:8]]
    conversations = write_jsonl(data / "conversations.jsonl", mixed)
    student = write_run(
        chain / "4_sft_800k", {"stage": "sft"}, base, {"model.path": [folder / "base"], "data.files": [conversations]}
    )
    train_on(student, conversations, range(1, len(mixed) - 1))
    return chain
