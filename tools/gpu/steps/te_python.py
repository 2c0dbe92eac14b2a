"""The trainer with Transformer Engine's layers on a machine without a GPU: built, checked against the family's table,
its checkpoint written, and run as far as the first kernel."""

import contextlib
import tempfile
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import te_stub
import torch
from report import Report


@contextlib.contextmanager
def reaching() -> Iterator[list[str]]:
    """The kernel that the code within calls first; tensors pass for a GPU's meanwhile.

    Raises:
        AssertionError: it calls none.
    """
    found: list[str] = []
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment]
    try:
        yield found
    except te_stub.Kernel as stop:
        found.append(stop.name)
    finally:
        del torch.Tensor.is_cuda
    assert found, "no kernel was called: was this Transformer Engine's layer?"


def policy(
    fp8: str = "none",
    *,
    mtp: str = "joint",
    spec: Any = None,
    dtype: str = "bf16",
    moments: str = "bf16",
    device: str = "cuda",
    **layout: Any,
) -> Any:
    """A policy on the CPU whose layers are those of a type of device, wherever tensors are then made on one."""
    import dataclasses

    from policies import small

    from r1mega.config.cluster import Precision, TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.trainer import mesh

    precision = Precision(fp8=fp8, moments=moments)  # type: ignore[arg-type]
    asked = TrainerLayout(dtype=dtype, precision=precision, **layout)  # type: ignore[arg-type]
    ours = dataclasses.replace(mesh.start(TrainerLayout(), device="cpu", seed=0), layout=asked)
    from r1mega.trainer import optimizer
    from r1mega.trainer import policy as policies
    from r1mega.trainer.network import build
    from r1mega.trainer.network.layer_spec import choose_layers
    from r1mega.trainer.network.model import megatron_config

    def config_there(*arguments: Any, **others: Any) -> Any:
        config = megatron_config(*arguments, **{**others, "device": device})
        config.use_cpu_initialization = True
        return config

    choose_adam = optimizer.choose_adam
    with (
        unittest.mock.patch.object(build, "megatron_config", config_there),
        unittest.mock.patch.object(policies, "choose_layers", lambda _, layout: choose_layers(device, layout)),
        unittest.mock.patch.object(optimizer, "choose_adam", lambda _, moments: choose_adam(device, moments)),
    ):
        return policies.Policy.build(
            spec or small(), ours, Optimizer(lr=1e-3), Batch(chunk_tokens=256, chunks_per_micro_batch=4), mtp=mtp,  # type: ignore[arg-type]
            mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
        )  # fmt: skip


def build_and_reach(report: Report, *recipes: str) -> NoReturn:
    """For each recipe, or "none" of FP8: build, compare, save, run to the first kernel. The step ends as skipped."""
    version = te_stub.install()
    from policies import documents, small

    from r1mega.families.spec import Kind
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    wanted = {row.megatron: row.shape for row in small().tensors() if row.kind is not Kind.COPY}
    for recipe in recipes:
        made = policy(recipe)
        held = {name: tuple(tensor.shape) for name, tensor in made.state().items()}
        assert held == wanted, {n: (held.get(n), wanted.get(n)) for n in held.keys() ^ wanted.keys()}
        engine = {type(m).__module__.split(".")[0] for n in made.networks for m in n.modules()}
        assert "transformer_engine" in engine, engine
        with tempfile.TemporaryDirectory() as folder:
            Checkpointer(made).save(Path(folder, "step_1"), {})
            size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        with reaching() as kernel:
            made.logprobs(documents(), temperature=1.0)
        report.note(**{recipe: {"tensors": len(held), "checkpoint_bytes": size, "kernel": kernel[0]}})
    report.note(transformer_engine=version)
    report.no_kernels("policies built, names and shapes as in the family's table, saved, run up to the first kernel")
