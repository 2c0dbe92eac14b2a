"""A folder's weights as they are streamed, and which folders one server can answer for. No vLLM here: a server that
was given them is asked in tests/pipeline/test_vllm_folder.py."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from check_and_run import write_model
from conversion_data import assert_same, tiny_spec, unique_tensors, write_folder
from safetensors.torch import load_file, save_file

from r1mega.errors import ConfigError, WeightMappingError
from r1mega.rollout.alike import differences, kind_of, served_as
from r1mega.weights.folder import FolderWeights, GiveFolder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("first") / "model")


def second(folder: Path, **fields: Any) -> Path:
    """Another model folder, all of whose weights are 1."""
    write_model(folder, **fields)
    ones = {name: torch.ones_like(t) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(ones, folder / "model.safetensors")
    return folder


class PushRecord:
    """In place of `weights.push.Pusher`: what it is asked to push, and where the server stands then."""

    made: "list[PushRecord]"

    def __init__(self, source: Any, servers: Any, **options: Any) -> None:
        self.source, self.servers, self.options, self.closed = source, list(servers), options, False
        self.sent, self.version, self.model_dir = dict[str, torch.Tensor](), -1, Path()
        PushRecord.made.append(self)

    def push(self, version: int) -> Any:
        assert [(name, t.dtype, tuple(t.shape)) for name, t in self.source] == self.source.metadata()
        self.sent = {name: t.clone() for name, t in self.source}  # a second pass
        self.version, self.model_dir = version, self.servers[0].model_dir
        return SimpleNamespace(seconds=0.1, recoveries=())

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _none_made() -> Iterator[None]:
    PushRecord.made = []
    yield


def server(folder: Path) -> Any:
    return SimpleNamespace(model_dir=folder, foreign=True, url="http://s")


def give(to: Any, folder: Path) -> None:
    GiveFolder(address="here", verify=7, breakable=nullcontext, pusher=PushRecord)([to], folder)


def test_a_servers_next_start_begins_with_the_folder_that_it_is_given(first: Path, tmp_path: Path):
    given, to = second(tmp_path / "second"), server(first)
    give(to, given)
    (pusher,) = PushRecord.made
    assert (pusher.version, pusher.model_dir, pusher.closed, pusher.servers) == (0, given, True, [to])
    assert pusher.options == {"address": "here", "verify": 7, "breakable": nullcontext}
    assert to.model_dir == given and not to.foreign
    wanted = load_file(given / "model.safetensors")
    assert pusher.sent.keys() == wanted.keys() and all(
        torch.equal(pusher.sent[name], wanted[name]) for name in wanted
    )


def test_servers_of_gpus_are_started_anew_of_the_folder(first: Path, tmp_path: Path):
    """What only asks them has no GPU to send from; a start's weights are the folder's, of version 0."""
    given, several = second(tmp_path / "second"), [server(first), server(first)]
    began = list[tuple[Path, str]]()
    for to in several:
        to.restart = lambda reason, to=to: began.append((to.model_dir, reason))
    GiveFolder(transport="nccl", pusher=PushRecord)(several, given)
    assert began == [(given, f"to begin with the weights of {given}")] * 2
    assert PushRecord.made == [] and not any(to.foreign for to in several)


def test_what_a_server_cannot_take_leaves_it_as_it_is(first: Path, tmp_path: Path):
    torn = second(tmp_path / "torn")
    tensors = load_file(torn / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, torn / "model.safetensors")
    to = server(first)
    with pytest.raises(WeightMappingError, match=r"model\.norm\.weight"):
        give(to, torn)
    other = second(tmp_path / "other", rms_norm_eps=1e-3)
    with pytest.raises(ConfigError, match=r"not served as .*1 differences.*\n  norm_eps: 1e-06 there, 0\.001 here"):
        give(to, other)
    assert PushRecord.made == [] and to.model_dir == first and to.foreign


@pytest.mark.parametrize("tied", [False, True])
def test_mtp_layers_are_left_out_and_a_head_is_sent_by_its_own_name(tied: bool, tmp_path: Path):
    """DeepSeek-V3, whose tied head vLLM reads under a name of its own, whether or not the folder repeats it."""
    spec = tiny_spec(tie_word_embeddings=tied)
    assert spec.num_mtp_layers
    tensors = unique_tensors(spec)
    mtp = {name for row in spec.tensors() if row.mtp for name in row.hf}
    wanted = {name: t for name, t in tensors.items() if name not in mtp}
    if tied:
        tensors.pop("lm_head.weight")
        wanted["lm_head.weight"] = wanted["model.embed_tokens.weight"]
    for number, kept in enumerate((tensors, {n: t for n, t in tensors.items() if n not in mtp})):
        folder = tmp_path / str(number)
        write_folder(folder, spec, kept)
        found = {name: t.clone() for name, t in FolderWeights(folder)}
        assert_same(found, wanted)
        assert len(found) < len(unique_tensors(spec))


def test_a_part_of_the_mtp_layers_is_no_whole_folder(tmp_path: Path):
    spec = tiny_spec()
    tensors = unique_tensors(spec)
    tensors.pop(next(name for row in spec.tensors() if row.mtp for name in row.hf if "enorm" in name))
    write_folder(tmp_path / "model", spec, tensors)
    with pytest.raises(WeightMappingError, match="enorm"):
        FolderWeights(tmp_path / "model")


def test_quantized_weights_are_given_to_no_server(first: Path, tmp_path: Path):
    """Not to one of such a folder either: it computes with 8 bits, and what is pushed would be multiplied out."""
    folders = [second(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        blocks = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
        changed(folder, "config.json", quantization_config=blocks)
    for running in (first, folders[0]):
        assert any(line.startswith("quantized") for line in differences(running, folders[1]))
    assert kind_of(folders[0]) != kind_of(folders[0])


def changed(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **fields}))


@pytest.mark.parametrize(
    ("file", "fields", "differs"),
    [
        ("config.json", {"bos_token_id": 3, "pad_token_id": 4}, ""),
        ("config.json", {"initializer_range": 0.5}, ""),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, ""),
        ("generation_config.json", {"temperature": 0.3, "eos_token_id": [256]}, ""),
        ("config.json", {"rope_theta": 5e5}, "rope"),
        ("config.json", {"max_position_embeddings": 2048}, "max_positions"),
        ("tokenizer.json", {"decoder": {"type": "Fuse"}}, "tokenizer.json"),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}, "tokenizer_config.json"),
        ("generation_config.json", {"max_new_tokens": 7}, "generation_config.max_new_tokens"),
    ],
)  # fmt: skip
def test_what_of_a_folder_is_of_consequence_to_its_server(
    file: str, fields: dict[str, Any], differs: str, first: Path, tmp_path: Path
):
    other = write_model(tmp_path / "other", weights=False)
    assert differences(first, other) == []
    changed(other, file, **fields)
    assert [line.partition(":")[0] for line in differences(first, other)] == [differs] * bool(differs)
    assert (served_as(first) == served_as(other)) is not bool(differs)
