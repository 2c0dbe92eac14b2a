"""Checkpoints: a resumed run continues bit for bit; damage is found; saving stops training for a copy alone."""

import dataclasses
import errno
import random
import re
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_data import make_documents, nll

from r1mega.errors import CheckpointError

if TYPE_CHECKING:
    from megatron.core import dist_checkpointing

    from r1mega.trainer.checkpoint import checkpointer as saving
    from r1mega.trainer.checkpoint import publishing
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.checkpoint.reading import newest_whole
    from r1mega.trainer.checkpoint.slices import find_slices
    from r1mega.trainer.network.names import own_tensors
    from r1mega.weights.megatron_io import load_weights


@pytest.fixture(autouse=True, scope="module")
def megatron(mesh):
    """Megatron as these tests see it: imported after the mesh, and not while other tests are collected."""
    global Checkpointer, dist_checkpointing, find_slices, load_weights, newest_whole, own_tensors, publishing, saving
    from megatron.core import dist_checkpointing

    from r1mega.trainer.checkpoint import checkpointer as saving
    from r1mega.trainer.checkpoint import publishing
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.checkpoint.reading import newest_whole
    from r1mega.trainer.checkpoint.slices import find_slices
    from r1mega.trainer.network.names import own_tensors
    from r1mega.weights.megatron_io import load_weights


def steps(policy, first, last):
    """(metrics, gradient norm) of training steps first..last."""
    return [
        (policy.forward_backward(make_documents(8, seed=s), nll), policy.optim_step(1e-3))
        for s in range(first, last + 1)
    ]


def test_a_resumed_run_continues_bit_for_bit(make_policy, documents, tmp_path):
    settings = {"mtp": "joint", "expert_bias_rate": 1e-3}
    policy = make_policy(**settings)
    policy.refresh_reference()
    steps(policy, 1, 2)
    Checkpointer(policy).save(tmp_path / "step_2", {"step": 2, "note": "half way"})
    draws = (torch.rand(3).tolist(), np.random.rand(), random.random())
    uninterrupted = steps(policy, 3, 4)

    resumed = make_policy(**settings, seed=9)
    assert Checkpointer(resumed).load(tmp_path / "step_2") == {"step": 2, "note": "half way"}
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == draws
    assert steps(resumed, 3, 4) == uninterrupted
    assert all(torch.equal(t, resumed.state()[n]) for n, t in policy.state().items())
    ours, theirs = (p.logprobs(documents, temperature=1.0, reference=True) for p in (policy, resumed))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_has_moved_in_memory_is_saved_from_where_it_is(make_policy, tmp_path):
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    found = checkpointer.slices()
    assert checkpointer.slices() is found  # finding them takes long
    moved = next(p for p in policy.networks[0].parameters() if p.dtype == torch.float32)
    moved.data = moved.data + 1  # as when weights come back to a device
    checkpointer.save(tmp_path / "step_1", {})
    again = make_policy(seed=9)
    Checkpointer(again).load(tmp_path / "step_1")
    assert all(torch.equal(t, again.state()[n]) for n, t in policy.state().items())


def test_saving_again_replaces_and_leaves_nothing_behind(make_policy, tmp_path):
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    checkpointer.save(tmp_path / "last", {"step": 1})
    checkpointer.save(tmp_path / "last", {"step": 2})
    assert checkpointer.load(tmp_path / "last") == {"step": 2}
    assert policy.reference is None
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_missing_torn_and_foreign_folders_are_refused(make_policy, spec, tmp_path):
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpointer.load(tmp_path / "nowhere")
    checkpointer.save(tmp_path / "good", {})
    with pytest.raises(CheckpointError, match="vocab_size"):
        Checkpointer(make_policy(spec=spec.with_vocab(400, bos=1, eos=2, pad=0))).load(tmp_path / "good")
    (data,) = (tmp_path / "good").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="torn"):
        checkpointer.load(tmp_path / "good")
    (tmp_path / "good" / "policy.json").unlink()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpointer.load(tmp_path / "good")


def test_a_failed_save_leaves_the_old_checkpoint(make_policy, tmp_path, monkeypatch):
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    checkpointer.save(tmp_path / "last", {"step": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "write_part", broken)
    with pytest.raises(CheckpointError, match=r"last: could not be saved \(disk full\)"):
        checkpointer.save(tmp_path / "last", {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    assert checkpointer.load(tmp_path / "last") == {"step": 1}


def test_megatron_itself_reads_the_weights(make_policy, tmp_path):
    policy = make_policy()
    steps(policy, 1, 1)
    Checkpointer(policy).save(tmp_path / "step_1", {})
    other = make_policy(seed=9)
    template = other.network.sharded_state_dict(metadata={"singleton_local_shards": False})
    loaded = dist_checkpointing.load(template, str(tmp_path / "step_1"))
    found = {name: t for name, t in loaded.items() if isinstance(t, torch.Tensor)}
    assert found.keys() == own_tensors(policy.network).keys()
    assert all(torch.equal(t, found[name]) for name, t in own_tensors(policy.network).items())


def test_weights_alone(make_policy, tmp_path):
    policy = make_policy()
    steps(policy, 1, 1)
    Checkpointer(policy).save(tmp_path / "step_1", {})
    other = make_policy(seed=9)
    load_weights(other, tmp_path / "step_1")
    assert all(torch.equal(t, other.state()[n]) for n, t in policy.state().items())


def test_a_save_keeps_the_state_of_its_moment_while_training_goes_on(make_policy, tmp_path, monkeypatch):
    policy = make_policy(expert_bias_rate=1e-3)
    checkpointer = Checkpointer(policy)
    policy.refresh_reference()
    steps(policy, 1, 1)
    before = {n: t.clone() for n, t in policy.state().items()}
    begun, go_on = threading.Event(), threading.Event()
    write = saving.write_part

    def held_up(*arguments):
        begun.set()
        assert go_on.wait(600)
        write(*arguments)

    monkeypatch.setattr(saving, "write_part", held_up)
    checkpointer.save(tmp_path / "step_1", {}, asynchronous=True)
    assert begun.wait(600)
    uninterrupted = steps(policy, 2, 3)
    policy.refresh_reference()
    assert checkpointer.busy and not (tmp_path / "step_1").exists()
    go_on.set()
    checkpointer.wait()
    resumed = make_policy(expert_bias_rate=1e-3, seed=9)
    Checkpointer(resumed).load(tmp_path / "step_1")
    assert all(torch.equal(t, resumed.state()[n]) for n, t in before.items())
    assert steps(resumed, 2, 3) == uninterrupted


def test_writing_that_fails_is_told_once_at_the_next_boundary(make_policy, tmp_path, monkeypatch):
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    checkpointer.save(tmp_path / "step_1", {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(publishing, "write_metadata", full)
        checkpointer.save(tmp_path / "step_2", {"step": 2}, asynchronous=True)
        with pytest.raises(CheckpointError, match=r"step_2: could not be saved .*No space left.*--resume"):
            checkpointer.wait()
    checkpointer.check()
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    checkpointer.save(tmp_path / "step_3", {"step": 3})
    assert checkpointer.load(tmp_path / "step_3") == {"step": 3}


def test_a_checkpoint_that_lacks_or_repeats_a_part_is_not_made(make_policy, tmp_path, monkeypatch):
    write = saving.write_part
    policy = make_policy()
    box = find_slices(policy).live[0]

    def save(change):
        def changed(folder, rank, contents):
            contents.boxes[:] = change(contents.boxes)
            write(folder, rank, contents)

        monkeypatch.setattr(saving, "write_part", changed)
        Checkpointer(policy).save(tmp_path / "step_1", {})

    half = dataclasses.replace(box, values=box.values[: box.shape[0] // 2])
    with pytest.raises(CheckpointError, match=re.escape(f"{box.key}: 0 of {box.values.numel()} elements")):
        save(lambda boxes: boxes[1:])
    with pytest.raises(CheckpointError, match=f"{half.values.numel()} of {box.values.numel()} elements"):
        save(lambda boxes: [half, *boxes[1:]])
    with pytest.raises(CheckpointError, match=re.escape(f"{box.key}: its chunks overlap")):
        save(lambda boxes: [half, half, *boxes[1:]])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def two_checkpoints(make_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    policy = make_policy()
    policy.refresh_reference()
    for step in (1, 2):
        Checkpointer(policy).save(
            folder / f"step_{step}", {"step": step}, {"00000.rollout.npz": b"what is left of a rollout"}
        )
    return folder


def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(two_checkpoints, mesh, caplog):
    first, second = two_checkpoints / "step_1", two_checkpoints / "step_2"
    assert newest_whole(mesh, [first, second]) == second
    names = sorted(p.name for p in second.iterdir())
    assert {".metadata", "__0_0.distcp", "policy.json", "random_0.pkl", "00000.rollout.npz", "common.pt",
            "metadata.json"} == set(names)  # fmt: skip
    rng = random.Random(0)
    for name in names:
        whole = (second / name).read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", bytes(flipped), None):
            (second / name).unlink()
            if damaged is not None:
                (second / name).write_bytes(damaged)
            caplog.clear()
            assert newest_whole(mesh, [first, second]) == first
            (warning,) = caplog.records
            assert name in warning.getMessage() or damaged is None
            assert str(second) in warning.getMessage() and f"using {first}" in warning.getMessage()
        (second / name).write_bytes(whole)
    assert newest_whole(mesh, [first, second]) == second


def test_where_no_checkpoint_is_whole_all_are_named(two_checkpoints, mesh, tmp_path):
    copies = [shutil.copytree(two_checkpoints / f"step_{n}", tmp_path / f"step_{n}") for n in (1, 2)]
    (copies[0] / "policy.json").unlink()
    (copies[1] / "random_0.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is whole.*step_2/random_0.pkl.*step_1.*missing"):
        newest_whole(mesh, copies)
    assert newest_whole(mesh, []) is None


def test_one_changed_byte_anywhere_in_the_tensors_is_refused(two_checkpoints, make_policy, tmp_path):
    folder = shutil.copytree(two_checkpoints / "step_2", tmp_path / "step_2")
    data = bytearray((folder / "__0_0.distcp").read_bytes())
    data[len(data) // 3] ^= 0x10
    (folder / "__0_0.distcp").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"__0_0.distcp: other bytes than were written"):
        Checkpointer(make_policy()).load(folder)


def test_a_disk_that_fills_up_leaves_the_old_checkpoint_and_one_message(make_policy, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    try:
        policy = make_policy()
        checkpointer = Checkpointer(policy)
        checkpointer.save(disk / "step_1", {"step": 1})
        checkpointer.save(disk / "step_2", {"step": 2}, asynchronous=True)
        steps(policy, 1, 1)
        with pytest.raises(CheckpointError, match=r"step_2: could not be saved \(.*No space left on device"):
            checkpointer.wait()
        assert [p.name for p in disk.iterdir()] == ["step_1"]
        assert checkpointer.load(disk / "step_1") == {"step": 1}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Traffic(TorchDispatchMode):
    """Bytes that this thread's operations read, and bytes of memory that they fill; views do neither."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.filled = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        known = {t.untyped_storage().data_ptr() for t in given}
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        new = [t for t in made if t.untyped_storage().data_ptr() not in known]
        if new or not made or func._schema.is_mutable:
            self.read += sum(t.nbytes for t in given)
            self.filled += sum(t.nbytes for t in new)
        return result


def test_a_save_stops_training_for_one_copy_of_the_state(make_policy, tmp_path, monkeypatch):
    """Each byte of it is read once and written once, and the rest of the work is another thread's."""
    policy = make_policy()
    checkpointer = Checkpointer(policy)
    policy.refresh_reference()  # never written to in place: needs no copy
    state = sum(box.values.nbytes for box in find_slices(policy).live)
    left, writers = threading.Event(), []
    write_part = saving.write_part

    def when_left(*args) -> None:
        writers.append((threading.current_thread(), left.wait(600)))
        write_part(*args)

    monkeypatch.setattr(saving, "write_part", when_left)
    with Traffic() as traffic:
        checkpointer.save(tmp_path / "step_1", {}, asynchronous=True)
    left.set()
    checkpointer.wait()
    ((writer, training_went_on),) = writers
    assert training_went_on and writer is not threading.current_thread()
    random_states = 64 << 10
    assert state <= traffic.read <= state + random_states
    assert state <= traffic.filled <= state + random_states
