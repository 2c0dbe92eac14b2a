"""A server and a transformers model that hold the same weights, and how far their log-probabilities are apart."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from tiny_model import FolderSource, perturb, weight_version

from r1mega.buffers import Int32s
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.server import Server
from r1mega.samples import Completion, Prompt
from r1mega.weights.push import Pusher

BOUND = 1e-4
TIE = 2e-6
"""Router scores lie in 0..1; fp32 programs differ by some 1e-7 there."""
PROMPT_TOKENS = 24
PUSH_S = 600.0
"""The longest wait of a push. What ends in a third of it did not wait for that: the machine may stop for a while."""


def prompts(count: int) -> list[Prompt]:
    draw = torch.Generator().manual_seed(count)
    ids = torch.randint(0, 256, (count, PROMPT_TOKENS), generator=draw).tolist()
    return [Prompt(f"p{i}", "task", "question", "truth", Int32s(row)) for i, row in enumerate(ids)]


class Live:
    """A server and a transformers model that hold the same weights."""

    def __init__(self, server: Server, scratch: Path) -> None:
        self.server, self.scratch = server, scratch
        self.fleet, self.version, self.last_version = Fleet([server]), 0, 1000
        """Versions from a thousand on are of no push by another module's tests."""
        self._load()
        self.pusher = Pusher(self, [server], timeout_s=PUSH_S)
        self.spoil: Callable[[Iterator[Any]], Iterator[Any]] = lambda pairs: pairs

    def metadata(self) -> Any:
        return self.source.metadata()

    def __iter__(self) -> Iterator[Any]:
        return self.spoil(iter(self.source))

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(self.server.model_dir, dtype=torch.float32).eval()
        self.source, self.same = FolderSource(self.model, self.scratch), True

    def ready(self) -> None:
        """The same weights on both sides, whatever a test has left."""
        self.spoil = lambda pairs: pairs
        if not self.server.healthy(PUSH_S / 10):
            self.server.restart("for the next test")
        if not self.same or weight_version(self.server) != str(self.version):
            self.push()

    def as_loaded(self) -> None:
        """The folder's weights on both sides, and none pushed to the server since its start."""
        if self.version:
            self.server.restart("for its first weights")
            self._load()
            self.version = 0

    def push(self, seed: int | None = None) -> Any:
        """Push new random weights, or the same once more."""
        if seed is not None:
            self.same = False
            perturb(self.model, seed)
            self.source = FolderSource(self.model, self.scratch)
        self.last_version += 1
        report = self.pusher.push(self.last_version)
        self.version, self.same = self.last_version, True
        return report

    def sample(self, num_prompts: int = 16, n: int = 16, temperature: float = 1.0) -> list[Completion]:
        asked = [Request(p, n, 1000 * i) for i, p in enumerate(prompts(num_prompts))]
        answers = self.fleet.generate(asked, SamplingParams(temperature, 32), version=self.version)
        return list(itertools.chain(*answers))

    def worst(self, num_prompts: int = 16, temperature: float = 1.0) -> tuple[float, int]:
        """The largest |d logp| that no router tie explains, and the number of sampled tokens compared."""
        samples, asked = self.sample(num_prompts, temperature=temperature), prompts(num_prompts)
        by_id = {p.id: p.token_ids for p in asked}
        worst, tokens = 0.0, 0
        for start in range(0, len(samples), 64):
            batch = samples[start : start + 64]
            longest = max(len(c.token_ids) for c in batch)
            ids = torch.zeros(len(batch), PROMPT_TOKENS + longest, dtype=torch.long)
            for row, c in zip(ids, batch, strict=True):
                row[: PROMPT_TOKENS + len(c.token_ids)] = torch.tensor((by_id[c.prompt_id] + c.token_ids).tolist())
            logp, margin = self.reference(ids, temperature or 1.0)
            for i, c in enumerate(batch):
                length = len(c.token_ids)
                diff = (logp[i, PROMPT_TOKENS - 1 :][:length] - torch.tensor(c.logp.tolist())).abs()
                # A tie at one token changes what all later ones attend to.
                closest = margin[i].cummin(0).values[PROMPT_TOKENS - 1 :][:length]
                worst = max(worst, diff.where((diff <= BOUND) | (closest > TIE), 0.0).max().item())
                tokens += length
        return worst, tokens

    def reference(self, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' logp of the next token [B, S - 1] and its closest router decision at each token [B, S]."""
        margins: list[torch.Tensor] = []
        gates = [m for m in self.model.modules() if type(m).__name__ == "DeepseekV3TopkRouter"]
        hooks = [g.register_forward_pre_hook(lambda g, x: margins.append(router_margin(g, x[0]))) for g in gates]
        with torch.no_grad():
            logits = self.model(ids).logits[:, :-1].float() / temperature
        for hook in hooks:
            hook.remove()
        logp = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return logp, torch.stack([m.view(ids.shape) for m in margins]).amin(0)

    def shim(self, name: str, state: str) -> None:
        body = {"method": "r1mega_shim", "args": [name, state]}
        httpx.post(f"{self.server.url}/collective_rpc", json=body, timeout=PUSH_S).raise_for_status()


def router_margin(gate: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Gap between the last group or expert chosen and the first one not, for each token [T]."""
    scores = (hidden.reshape(-1, gate.hidden_dim) @ gate.weight.T).sigmoid() + gate.e_score_correction_bias
    groups = scores.view(len(scores), gate.num_group, -1)
    group_scores = groups.topk(2).values.sum(-1).sort(descending=True)
    group_gap = group_scores.values[:, gate.topk_group - 1] - group_scores.values[:, gate.topk_group]
    chosen = group_scores.indices[:, : gate.topk_group, None].expand(-1, -1, groups.shape[-1])
    experts = groups.gather(1, chosen).flatten(1).sort(descending=True).values
    return torch.minimum(group_gap, experts[:, gate.top_k - 1] - experts[:, gate.top_k])
