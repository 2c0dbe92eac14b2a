"""A policy for the stages' loops: small, exact in closed form, and it writes down what it is asked.

The model gives every token v the probability softmax(theta / T)[v], whatever stands before it; theta is a column of
the embedding, so that folders, pushes and exports carry it. An optimiser step is theta - lr x gradient.
"""

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from r1mega.families.registry import read_model
from r1mega.families.spec import Kind, ModelSpec
from r1mega.runtime.files import put_folder
from r1mega.samples import Document

THETA = "embedding.word_embeddings.weight"
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 288, "hidden_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02, "max_position_embeddings": 128,
    "rope_theta": 1e4, "rope_scaling": None, "use_sliding_window": False, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip


def stop_signal() -> None:
    """As the scheduler sends it, to this very process."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Call:
    """One verb that a policy was asked for."""

    verb: str
    documents: tuple[Document, ...] = ()
    temperature: float = 1.0
    reference: bool = False
    lr: float = 0.0


class RecordingPolicy:
    """The verbs of `trainer.policy.Policy` that stages use."""

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Any,
        optimizer: Any = None,
        batch: Any = None,
        *,
        after_step: Callable[[int], None] = lambda taken: None,
        damage: Callable[[Sequence[Document], Tensor], object] = lambda documents, gradient: None,
        margin: float = 1.0,
        **settings: Any,
    ) -> None:
        """
        Args:
            after_step: called with the steps taken by this policy, at the end of each.
            damage: called with what each pass has learnt from, and the gradient [vocab_size], which it may spoil.
            margin: of every choice of experts, as `routing_margins` says.
        """
        self.spec, self.mesh = spec, mesh
        self.settings = {"optimizer": optimizer, "batch": batch, **settings}
        self.network = SimpleNamespace(config=SimpleNamespace(params_dtype=torch.float32))
        self.expert_load = None
        self.calls: list[Call] = []
        rows = (row for row in spec.tensors() if row.kind is not Kind.COPY)
        self._weights = {row.megatron: torch.zeros(row.shape) for row in rows}
        self._gradient = torch.zeros(spec.vocab_size, dtype=torch.float64)
        self.reference: Tensor | None = None
        self._after_step, self._margin, self._taken = after_step, margin, 0
        self._damage = damage

    @property
    def theta(self) -> Tensor:
        """[vocab_size], live."""
        return self._weights[THETA][:, 0]

    def state(self) -> dict[str, Tensor]:
        return self._weights

    def weights_changed(self) -> None: ...

    def forward_backward(
        self, documents: Sequence[Document], loss: Callable[..., Any], *, temperature: float = 1.0
    ) -> dict[str, float]:
        self.calls.append(Call("forward_backward", tuple(documents), temperature))
        theta = self.theta.double().clone().requires_grad_()
        names = documents[0].fields
        fields = {n: torch.tensor([x for d in documents for x in d.fields[n]], dtype=torch.float64) for n in names}
        logp = torch.cat([_logp(theta, d, temperature) for d in documents])
        doc = torch.tensor([i for i, d in enumerate(documents) for _ in range(d.num_targets)])
        value, metrics = loss(logp, fields, doc)
        value.backward()
        assert theta.grad is not None
        self._gradient += theta.grad
        self._damage(documents, self._gradient)
        found = {"loss": float(value.detach()), **{name: float(m) for name, m in metrics.items()}}
        if "weight" in fields:
            p = torch.softmax(theta.detach() / temperature, 0)
            found["entropy"] = float(-(p * p.log()).sum() * fields["weight"].sum())
        return found

    def optim_step(self, lr: float, *, accept: Callable[[float], bool] = math.isfinite) -> float:
        """As `Policy.optim_step`; `after_step` is called at the end of those that were not taken as well."""
        self.calls.append(Call("optim_step", lr=lr))
        norm = float(self._gradient.norm())
        if accept(norm):
            self.theta.copy_(self.theta.double() - lr * self._gradient)
        self._gradient.zero_()
        self._taken += 1
        self._after_step(self._taken)
        return norm

    def logprobs(self, documents: Sequence[Document], *, temperature: float, reference: bool = False) -> list[Tensor]:
        self.calls.append(Call("logprobs", tuple(documents), temperature, reference))
        if reference:
            assert self.reference is not None, "no reference yet"
        theta = self.reference if reference else self.theta
        return [_logp(theta.double(), d, temperature) for d in documents]

    def routing_margins(self, documents: Sequence[Document]) -> list[Tensor]:
        return [torch.full((len(d.token_ids) - 1,), self._margin) for d in documents]

    def refresh_reference(self) -> None:
        self.calls.append(Call("refresh_reference"))
        self.reference = self.theta.clone()


class RecordingCheckpointer:
    """Saves and loads a `RecordingPolicy` as `trainer.checkpoint`'s Checkpointer does a policy, at once."""

    def __init__(self, policy: RecordingPolicy) -> None:
        self._policy = policy

    def save(
        self,
        folder: Path,
        extra: dict[str, Any],
        own: Mapping[str, bytes] | None = None,
        *,
        asynchronous: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """A folder that `newest_whole` finds whole."""
        from r1mega.formats.manifest import FORMAT, MANIFEST, digest
        from r1mega.trainer.checkpoint.writing import file_digest

        policy, to = self._policy, folder.with_name(f".{folder.name}.tmp")
        to.mkdir(parents=True)
        torch.save({"theta": policy.theta, "reference": policy.reference}, to / "theta.pt")
        for name, data in (own or {}).items():
            (to / name).write_bytes(data)
        manifest = {"format": FORMAT, "reference": True, "ranks": 1, "model": dict(policy.spec.hf), "extra": extra}
        manifest |= {"layout": {}, "optimizer": {}, "files": {p.name: file_digest(p) for p in to.iterdir()}}
        (to / MANIFEST).write_text(json.dumps({**manifest, "crc32": digest(manifest)}))
        put_folder(to, folder)
        then()

    def load(self, folder: Path, *, verified: bool = False) -> dict[str, Any]:
        from r1mega.formats.manifest import read_manifest

        saved = torch.load(folder / "theta.pt")
        self._policy.theta.copy_(saved["theta"])
        self._policy.reference = saved["reference"]
        return read_manifest(folder)["extra"]

    def check(self) -> None: ...

    def wait(self) -> None: ...

    def abandon(self, grace_s: float) -> None: ...


def recorded_saves() -> AbstractContextManager[Any]:
    """Stages that run within it save a `RecordingPolicy`."""
    return mock.patch("r1mega.weights.saves.Checkpointer", RecordingCheckpointer)


def _logp(theta: Tensor, document: Document, temperature: float) -> Tensor:
    targets = [i for start, stop in document.target_spans for i in document.token_ids[start:stop]]
    return torch.log_softmax(theta / temperature, 0)[targets]


def write_base(folder: Path, mesh: Any, texts: Sequence[str]) -> Path:
    """A Hugging Face folder of the model, theta being sin(v), with a tokenizer trained on `texts`."""
    from r1mega.data.tokenizer import train_tokenizer
    from r1mega.weights import hf_io

    folder.mkdir(parents=True)
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIG))
    train_tokenizer(texts, CONFIG["vocab_size"], folder / "tokenizer")
    policy: Any = RecordingPolicy(read_model(config), mesh)
    policy.theta.copy_(torch.arange(len(policy.theta)).sin())
    hf_io.export(policy, folder / "hf", folder / "tokenizer")
    return folder / "hf"
