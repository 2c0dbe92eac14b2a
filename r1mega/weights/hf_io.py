"""Hugging Face folders: export of a policy, and the inverse through the same table."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from r1mega.errors import CheckpointError
from r1mega.families.spec import Kind, ModelSpec
from r1mega.formats import companions
from r1mega.formats.hf_files import SHARD_BYTES, shard_names, write_config, write_index
from r1mega.formats.hf_folder import HFFolder
from r1mega.formats.torch_dtypes import dtype_name
from r1mega.runtime.background import Background
from r1mega.runtime.files import write_folder
from r1mega.trainer.network.filling import fill
from r1mega.trainer.policy import Policy
from r1mega.weights.source import PolicySource

log = logging.getLogger(__name__)


def export(
    policy: Policy,
    folder: Path,
    tokenizer_dir: Path | None,
    *,
    identity: Mapping[str, Any] | None = None,
    beside: Background | None = None,
) -> None:
    """Write config.json, safetensors, and what travels with them (`companions`); complete or not at all.

    MTP layers are written under DeepSeek's published names, embedding and head repeated as published; a model of
    scores is transformers' sequence classification of its family, with one label. Every rank calls this; rank 0
    writes.

    Args:
        folder: replaced if it exists.
        tokenizer_dir: the model that this one began as, or a tokenizer alone: its tokenizer, generation config and
            licences are copied; None copies none.
        identity: of the policy (`provenance.Lineage.policy`), which the card says.
        beside: write in this thread from a copy of the weights, made on rank 0, and return when it is made;
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
        beside.start(lambda: _write_beside(policy, folder, _emptied(copies), tokenizer_dir, identity))
    else:
        write_folder(folder, lambda to: _write_all(policy, to, source, tokenizer_dir, identity))
    if beside is None:
        policy.mesh.barrier()


SCORES = (
    "It gives a text one score, the logit of its one label, read at the text's last token. Pad batches on the right, "
    "with the token that `pad_token_id` of config.json names, whatever the tokenizer's own is: transformers reads a "
    "score at the last token that is another."
)
"""What the card of a model of scores says."""


def _write_all(
    policy: Policy,
    to: Path,
    tensors: Iterable[tuple[str, Tensor]],
    source: Path | None,
    identity: Mapping[str, Any] | None,
) -> None:
    _write_tensors(tensors, to)
    spec = policy.spec
    config = write_config(to, spec.hf, dtype_name(policy.network.config.params_dtype))
    companions.copy(companions.collect(source, source), to)
    companions.write_generation_config(spec, to, trained=True)
    rows = {"family": spec.family, "dtype": config["dtype"], "trained by": f"r1mega {companions.version()}"}
    if identity is not None:
        rows["policy"] = ", ".join(f"{what} {identity[what]}" for what in ("run", "step", "start", "recipe"))
    if source is not None:
        rows["tokenizer and licence of"] = f"`{source.resolve().name}`"
    title, said = ("Reward model", [SCORES]) if spec.head == "score" else ("Trained model", [])
    companions.write_card(to, source, library="transformers", title=title, rows=rows, said=said)


def _write_beside(
    policy: Policy,
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    source: Path | None,
    identity: Mapping[str, Any] | None,
) -> None:
    try:
        write_folder(folder, lambda to: _write_all(policy, to, tensors, source, identity))
    except OSError as error:
        raise CheckpointError(f"{folder}: could not be written ({error}); mend this and use --resume") from error


def _copies(source: Iterable[tuple[str, Tensor]], policy: Policy) -> list[tuple[str, Tensor]]:
    """The weights as they are now, in host memory. What was gathered is a copy; what is repeated is copied once."""
    live = {t.untyped_storage().data_ptr() for t in policy.state().values()}
    copied: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
    found: list[tuple[str, Tensor]] = []
    for name, tensor in source:
        storage = tensor.untyped_storage().data_ptr()
        if storage in live:
            place = (storage, int(tensor.storage_offset()), tuple(tensor.shape))
            if place not in copied:
                copied[place] = tensor.to("cpu", copy=True)
            tensor = copied[place]
        found.append((name, tensor.cpu()))
    return found


def _emptied(tensors: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The items in order; the list lets go of each."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


def load_into(policy: Policy, folder: Path) -> None:
    """Fill a policy's weights from a Hugging Face folder, FP8 blocks multiplied out; the optimiser keeps its moments.

    A policy with a score head takes one too from a folder that is a language model's: of that, output head and MTP
    layers are left out, which is said, and the score head stays as it is.

    Raises:
        ConfigError: the folder is quantised in another way than DeepSeek's.
        WeightMappingError: no safetensors, an unreadable file, a wrong index, weights that are no floats, or tensors
            that do not map one to one; lists all.
    """
    files = HFFolder(folder, policy.spec)
    if files.spec.head != policy.spec.head and policy.mesh.first:
        say_left_out(folder, files.spec, policy.spec)
    fill(files.table, files.tensor, policy.state(), files.release)
    policy.weights_changed()


def say_left_out(folder: Path, stored: ModelSpec, wanted: ModelSpec) -> None:
    """Log what of a language model a model of scores does not take, and what it does not find there."""
    taken = {row.megatron for row in wanted.tensors()}
    rows = [row for row in stored.tensors() if row.kind is not Kind.COPY and row.megatron not in taken]
    left_out = [] if stored.tied else ["its output head"]
    left_out += [f"{stored.num_mtp_layers} MTP layer(s)"] if stored.num_mtp_layers else []
    log.warning(
        "%s: a language model; the score head begins at random, and %s (%s parameters) %s left out",
        folder, " and ".join(left_out) or "nothing", f"{sum(math.prod(row.shape) for row in rows):,}",
        "are" if len(left_out) > 1 else "is",
    )  # fmt: skip


def _write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """One file, or several and their index; each is written as soon as it is full.

    `conversion.writers` lays its files out before it writes any, so that several processes can fill them in any order
    and a killed run goes on. Here the tensors come once, in the stream's order, and how many files they make is known
    at the end.
    """
    shard: dict[str, Tensor] = {}
    weight_map: dict[str, int] = {}
    size = total = written = 0
    for name, tensor in tensors:
        if size and size + tensor.nbytes > SHARD_BYTES:
            save_file(shard, folder / f"{written}.part", metadata={"format": "pt"})
            shard, size, written = {}, 0, written + 1
        # A copy: the live tensor may change, and safetensors refuses the repeated embedding, which shares its memory.
        shard[name] = tensor.to("cpu", copy=True)
        weight_map[name] = written
        size += tensor.nbytes
        total += tensor.nbytes
    save_file(shard, folder / f"{written}.part", metadata={"format": "pt"})
    names = shard_names(written + 1)
    for i, name in enumerate(names):
        (folder / f"{i}.part").rename(folder / name)
    if written:
        write_index(folder, {name: names[i] for name, i in weight_map.items()}, total)
