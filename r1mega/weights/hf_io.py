"""Hugging Face folders: export of a policy, and the inverse through the same table."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1mega.errors import CheckpointError, WeightMappingError
from r1mega.runtime.background import Background
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


def export(policy: Policy, folder: Path, tokenizer_dir: Path | None, *, beside: Background | None = None) -> None:
    """Write config.json, generation_config.json, safetensors and the tokenizer's files; complete or not at all.

    MTP layers are written under DeepSeek's published names, embedding and head repeated as published. Every rank
    calls this; the first one writes.

    Args:
        folder: replaced if it exists.
        tokenizer_dir: where the tokenizer's files are copied from; None copies none.
        beside: write in this thread from a copy of the weights, made on the first rank, and return when it is made;
            without it tensors are written as they come, and a file's worth of them is in memory at most.

    Raises:
        WeightMappingError: the model and its family's table disagree.
        CheckpointError: what `beside` wrote before has failed.
    """
    source: Iterable[tuple[str, Tensor]] = PolicySource(policy, include_mtp=True)
    if not policy.mesh.first:
        for _ in source:
            pass
    elif beside is not None:
        beside.wait()
        copies = _copies(source, policy)
        beside.start(lambda: _write_beside(policy, folder, _emptied(copies), tokenizer_dir))
    else:
        write_folder(folder, lambda to: _write_all(policy, to, source, tokenizer_dir))
    if beside is None:
        policy.mesh.barrier()


def _write_all(policy: Policy, to: Path, tensors: Iterable[tuple[str, Tensor]], tokenizer_dir: Path | None) -> None:
    _write_tensors(tensors, to)
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


def _write_beside(policy: Policy, folder: Path, tensors: Iterable[tuple[str, Tensor]], source: Path | None) -> None:
    try:
        write_folder(folder, lambda to: _write_all(policy, to, tensors, source))
    except OSError as error:
        raise CheckpointError(f"{folder}: could not be written ({error}); mend this and use --resume") from error


def _copies(source: Iterable[tuple[str, Tensor]], policy: Policy) -> list[tuple[str, Tensor]]:
    """The weights as they are now. What was gathered is a copy already; what is repeated is copied once."""
    live = {t.untyped_storage().data_ptr() for t in policy.state().values()}
    copied: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
    found: list[tuple[str, Tensor]] = []
    for name, tensor in source:
        storage = tensor.untyped_storage().data_ptr()
        if storage in live:
            place = (storage, int(tensor.storage_offset()), tuple(tensor.shape))
            if place not in copied:
                copied[place] = tensor.clone()
            tensor = copied[place]
        found.append((name, tensor))
    return found


def _emptied(tensors: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The items in order; the list lets go of each."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


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


def _write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """One file, or several and their index; each is written as soon as it is full."""
    shard: dict[str, Tensor] = {}
    weight_map: dict[str, int] = {}
    size = total = written = 0
    for name, tensor in tensors:
        if size and size + tensor.nbytes > SHARD_BYTES:
            save_file(shard, folder / f"{written}.part", metadata={"format": "pt"})
            shard, size, written = {}, 0, written + 1
        # A copy: the live tensor may change, and safetensors refuses the repeated embedding, which shares its memory.
        shard[name] = tensor.clone()
        weight_map[name] = written
        size += tensor.nbytes
        total += tensor.nbytes
    save_file(shard, folder / f"{written}.part", metadata={"format": "pt"})
    if not written:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    names = [f"model-{i:05d}-of-{written + 1:05d}.safetensors" for i in range(1, written + 2)]
    for i, name in enumerate(names):
        (folder / f"{i}.part").rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[i] for name, i in weight_map.items()}}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
