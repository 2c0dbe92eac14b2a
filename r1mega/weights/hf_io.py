"""Hugging Face folders: export of a policy, and the inverse through the same table."""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1mega.errors import WeightMappingError
from r1mega.runtime.files import write_folder
from r1mega.trainer.policy import Policy
from r1mega.weights.convert import check_files, fill
from r1mega.weights.source import PolicySource

SHARD_BYTES = 5 * 2**30
"""Size above which a new safetensors file is begun."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def export(policy: Policy, folder: Path, tokenizer_dir: Path | None) -> None:
    """Write config.json, generation_config.json, safetensors and the tokenizer's files; complete or not at all.

    MTP layers are written under DeepSeek's published names, embedding and head repeated as published. Every rank
    calls this; the first one writes.

    Args:
        folder: replaced if it exists.
        tokenizer_dir: where the tokenizer's files are copied from; None copies none.

    Raises:
        WeightMappingError: the model and its family's table disagree.
    """
    source = PolicySource(policy, include_mtp=True)

    def write(to: Path) -> None:
        _write_tensors(source, to)
        spec = policy.spec
        dtype = str(policy.network.config.params_dtype).removeprefix("torch.")
        config = {**{k: v for k, v in spec.hf.items() if k != "torch_dtype"}, "dtype": dtype}
        _write_json(to / "config.json", config)
        generation = {"bos_token_id": spec.bos, "eos_token_id": spec.eos, "pad_token_id": spec.pad}
        _write_json(to / "generation_config.json", generation)
        if tokenizer_dir is not None:
            for file in (tokenizer_dir / name for name in TOKENIZER_FILES):
                if file.is_file():
                    shutil.copyfile(file, to / file.name)

    if policy.mesh.first:
        write_folder(folder, write)
    else:
        for _ in source:
            pass
    policy.mesh.barrier()


def load_into(policy: Policy, folder: Path) -> None:
    """Fill a policy's weights from a Hugging Face folder; the optimiser keeps its moments.

    Raises:
        WeightMappingError: no safetensors, an unreadable file, or tensors that do not map one to one; lists all.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightMappingError(f"{folder}: no safetensors file")
    table = policy.spec.tensors()
    handles = {}
    shapes: list[tuple[str, tuple[int, ...]]] = []
    try:
        for file in files:
            handle = safe_open(file, framework="pt")
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                handles[name] = handle
                shapes.append((name, tuple(handle.get_slice(name).get_shape())))
    except SafetensorError as e:
        raise WeightMappingError(f"{file}: unreadable ({e})") from e
    check_files(table, shapes)

    def read(name: str) -> Tensor | None:
        return handles[name].get_tensor(name) if name in handles else None

    fill(table, read, policy.state())
    policy.weights_changed()


def _write_tensors(source: PolicySource, folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in source:
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        # A copy: safetensors refuses the repeated embedding, which shares its memory.
        shards[-1][name] = tensor.clone()
        size += tensor.nbytes
        total += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
