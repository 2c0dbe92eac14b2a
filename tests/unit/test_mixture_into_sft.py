"""What a mixture leaves is what SFT reads: the tokens are those of the same messages without provenance."""

import json
from pathlib import Path
from typing import Any

import pytest
from check_and_run import ROOT, both, stop_at_start, write_model
from mixture_run import mixed, sampled, write

from r1mega.data.chat import Chat
from r1mega.data.conversations import Source
from r1mega.data.tokenizer import load_tokenizer

TEMPLATE = ROOT / "configs/chat_templates/qwen.jinja"

RAW = [
    {"prompt": "1 and 2, please?", "response": "<think>\n1 + 2\n</think>\n\n3"},
    {"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": "One?"},
                  {"role": "assistant", "content": "No,", "weight": 0}, {"role": "user", "content": "Two?"},
                  {"role": "assistant", "content": "Yes."}]},
    {"messages": [{"role": "user", "content": "Éa 数?"}, {"role": "assistant", "content": "数 \\ \"é\""}],
     "system": "Say \u2028 it.", "weight": None},
]  # fmt: skip
TABLES = '[[data]]\nfiles = ["rows.jsonl"]\n[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def test_tokens_are_those_of_the_messages_alone(model: Path, tmp_path: Path):
    tokenizer = load_tokenizer(model)
    chat = Chat(tokenizer, (tokenizer.eos_token_id,), TEMPLATE)
    rows = [sampled(f"How much is {i} and 2?", f"<think>\n{i} + 2\n</think>\n\n{i + 2}") for i in range(9)]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "plain.jsonl", RAW)
    bare = write(tmp_path / "bare.jsonl", [*({"messages": row["messages"]} for row in rows), *RAW])
    made = mixed(tmp_path, TABLES) / "conversations.jsonl"

    def tokens(file: Path) -> list[tuple[Any, ...]]:
        return sorted((tuple(one.ids), one.spans) for one in chat.encode(list(Source([file], "", "train"))))

    assert tokens(made) == tokens(bare)
    assert len(tokens(made)) == 12


def test_sft_takes_the_set(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [sampled(f"How much is {i} and 2?", f"<think>\n{i} + 2\n</think>\n\n{i + 2}") for i in range(400)]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "plain.jsonl", RAW)
    made = mixed(tmp_path, TABLES) / "conversations.jsonl"
    stop_at_start(monkeypatch, tmp_path / "cache")
    settings = [f"model.path={model}", f"data.files={json.dumps([str(made)])}", f"chat_template={TEMPLATE}"]
    settings += ["max_positions=4096", "data.max_tokens=512", "batch.chunk_tokens=512"]
    config = ROOT / "configs/tiny/sft/1_qwen2.toml"
    checked, ran = both(config, settings, tmp_path / "sft", capsys)
    assert checked[0] == ran[0] == 0, (checked, ran)
    # A row of it that says nothing is found: it was read.
    made.write_text(made.read_text() + json.dumps({"messages": []}) + "\n")
    checked, _ = both(config, settings, tmp_path / "sft", capsys)
    assert checked[0] == 2 and "conversations.jsonl, line 404" in checked[1]
