"""A policy and an engine for the stages' loops: small, exact in closed form, and they write down what they are asked.

The model gives every token v the probability softmax(theta / T)[v], whatever stands before it; theta is a column of
the embedding, so that folders, pushes and exports carry it. An optimiser step is theta - lr x gradient.
"""

import json
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from r1mega.buffers import Float32s, Int32s
from r1mega.families.registry import read_model
from r1mega.families.spec import Kind, ModelSpec
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.runtime.files import put_folder
from r1mega.samples import Completion, Document, FinishReason

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
        margin: float = 1.0,
        **settings: Any,
    ) -> None:
        """
        Args:
            after_step: called with the steps taken by this policy, at the end of each.
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
        found = {"loss": float(value.detach()), **{name: float(m) for name, m in metrics.items()}}
        if "weight" in fields:
            p = torch.softmax(theta.detach() / temperature, 0)
            found["entropy"] = float(-(p * p.log()).sum() * fields["weight"].sum())
        return found

    def optim_step(self, lr: float) -> float:
        self.calls.append(Call("optim_step", lr=lr))
        norm = float(self._gradient.norm())
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


@dataclass(frozen=True)
class Asked:
    """One request that an engine answered."""

    version: int
    params: SamplingParams
    request: Request
    answers: tuple[Completion, ...]
    kinds: tuple[str, ...]
    """What each is: "right"; "wrong"; "bare", right and not in the format; "cut", right and truncated."""


GROUPS = (("right", "wrong", "bare", "cut"), ("wrong", "wrong", "wrong", "wrong"), ("right", "cut", "wrong", "wrong"))
"""What the first question of a run is answered with, the second, the third, and round again."""


@dataclass
class Engines:
    """Makes the engines of a run and of its resumed parts, and keeps what all of them were asked."""

    groups: Sequence[Sequence[str]] = GROUPS
    shift: float = 0.0
    """Token i's log-probability is off by shift x sin(i + 1): how far the engine is from the trainer."""
    only: int | None = None
    """Of the first answer to the request of this number alone; of all where there is none."""
    stop_after: int | None = None
    """A signal comes once so many requests are answered."""
    push_seconds: float = 0.0
    """What a push is said to take."""
    places: dict[str, int] = field(default_factory=dict)
    """Of every question, in the order in which they first came."""
    asked: list[Asked] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    """With which each engine was made."""

    def make(self, model_dir: Path, layout: Any, **options: Any) -> "RecordingEngine":
        self.options.append({"model_dir": model_dir, **options})
        return RecordingEngine(self)

    def pusher(self, source: Any, servers: Sequence["RecordingEngine"], **options: Any) -> "RecordingPusher":
        return RecordingPusher(source, servers, options["announce"], self.push_seconds)

    def rollouts(self) -> dict[int, list[Asked]]:
        """What was asked for training, by the version of the weights: that which stands between two evaluations."""
        found: dict[int, list[Asked]] = {}
        for asked in self.asked:
            if len(asked.answers) == len(self.groups[0]):
                found.setdefault(asked.version, []).append(asked)
        return found

    def evaluations(self) -> dict[int, list[Asked]]:
        """What was asked for evaluations, by the version of the weights."""
        found: dict[int, list[Asked]] = {}
        for asked in self.asked:
            if len(asked.answers) != len(self.groups[0]):
                found.setdefault(asked.version, []).append(asked)
        return found


class RecordingPusher:
    """What `weights.push.Pusher` does, for `RecordingEngine`."""

    def __init__(
        self, source: Any, servers: Sequence["RecordingEngine"], announce: Callable[[], None], seconds: float
    ) -> None:
        self._source, self._servers, self._announce, self._seconds = source, servers, announce, seconds

    def prepare(self) -> None: ...

    def close(self) -> None: ...

    def push(self, version: int) -> Any:
        self._announce()
        theta = dict(self._source)["model.embed_tokens.weight"][:, 0].clone()
        for server in self._servers:
            server.take(version, theta)
        return SimpleNamespace(seconds=self._seconds, recoveries=())


class RecordingEngine:
    """What `rollout.served.ServedModel`, its server and its client do, at the weights that were pushed."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._version, self._theta = -1, torch.zeros(0)

    def take(self, version: int, theta: Tensor) -> None:
        self._version, self._theta = version, theta

    def __enter__(self) -> "RecordingEngine":
        return self

    def __exit__(self, *error: object) -> None: ...

    @property
    def servers(self) -> tuple["RecordingEngine", ...]:
        return (self,)

    def start(self) -> None: ...

    def client(self, *_: Any) -> "RecordingEngine":
        return self

    def peak_rss_gib(self) -> float:
        return 0.0

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: Callable[[int, tuple[Completion, ...]], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        assert version == self._version
        engines, found = self._engines, []
        for place, request in enumerate(requests):
            question = engines.places.setdefault(request.prompt.id, len(engines.places))
            kinds = tuple(engines.groups[question % len(engines.groups)][: request.n])
            answers = tuple(self._answer(request, i, kind, params) for i, kind in enumerate(kinds))
            found.append(answers)
            engines.asked.append(Asked(version, params, request, answers, kinds))
            if on_answer is not None:
                on_answer(place, answers)
            if len(engines.asked) == engines.stop_after:
                stop_signal()
        return found

    def _answer(self, request: Request, i: int, kind: str, params: SamplingParams) -> Completion:
        """Drawn with seed + i, as engines do; what it says follows from `kind` alone."""
        rng = random.Random(f"{request.prompt.id}/{request.seed + i}")
        limit = params.max_new_tokens
        tokens = rng.choices(range(5, len(self._theta)), k=limit if kind == "cut" else rng.randint(2, limit - 1))
        logp = torch.log_softmax(self._theta.double() / (params.temperature or 1.0), 0)[tokens]
        off = self._engines.shift * torch.arange(1, len(tokens) + 1).sin()
        if self._engines.only not in (None, len(self._engines.asked) + 1) or (self._engines.only and i):
            off = 0 * off
        said = str(int(request.prompt.truth) + 1) if kind == "wrong" else request.prompt.truth
        text = f"<answer>{said}</answer>" if kind == "bare" else f"<think>1=1</think><answer>{said}</answer>"
        ended = FinishReason.LENGTH if kind == "cut" else FinishReason.STOP
        seed = request.seed + i
        return Completion(
            request.prompt.id, i, Int32s(tokens), Float32s((logp + off).tolist()), text, ended, self._version, seed
        )


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
