"""Training steps by transformers, torch.optim and the equations alone; nothing of ours is imported.

python transformers_steps.py FOLDER REQUEST.json OUT.safetensors

REQUEST: {"adam": arguments of torch.optim.AdamW but weight_decay, "weight_decay", "clip", "depths": MTP layers, which
learn jointly, "lambda": their weight, "steps": [{"documents": [{"ids", "learn_from", "adv", "old", "ref"}], "lr",
"temperature", "loss": "likelihood" | "grpo", "clip_low", "clip_high", "kl_coef"}]}.
Prints [class of the model, [{"loss", "mtp_loss", "grad_norm", "entropy"} of each step]]. OUT has the first step's
gradients (grad/NAME) and the weights after the last (weight/NAME), under the published names.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

folder, request_file, out = sys.argv[1:]
request = json.loads(Path(request_file).read_text())
depths = request["depths"]
config = AutoConfig.from_pretrained(folder)
config.num_hidden_layers += depths  # an MTP layer's block is a decoder layer, and is read as one more
model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")
first = config.num_hidden_layers - depths
blocks = list(model.model.layers[first:])
model.model.layers = model.model.layers[:first]
config.num_hidden_layers = model.config.num_hidden_layers = first
tensors = load_file(f"{folder}/model.safetensors")


class Depth(nn.Module):
    """V3 report 2.2, Eq. 21-23, as published: eh_proj takes the embedding's half first."""

    def __init__(self, k, block):
        super().__init__()
        own = {name: tensors[f"model.layers.{first + k}.{name}.weight"] for name in ("enorm", "hnorm", "eh_proj")}
        self.block, self.eh_proj = block, nn.Parameter(own["eh_proj"])
        self.enorm, self.hnorm = nn.Parameter(own["enorm"]), nn.Parameter(own["hnorm"])
        self.norm = nn.Parameter(tensors[f"model.layers.{first + k}.shared_head.norm.weight"])

    def forward(self, embedded, hidden):
        def norm(x, weight):
            return weight * x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

        x = torch.cat([norm(embedded, self.enorm), norm(hidden, self.hnorm)], -1) @ self.eh_proj.T
        length = x.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        turns = model.model.rotary_emb(x, torch.arange(length)[None])
        return norm(self.block(x, attention_mask=mask, position_embeddings=turns), self.norm)


mtp = nn.ModuleList(Depth(k, block) for k, block in enumerate(blocks))
params = [*model.parameters(), *mtp.parameters()]
optimizer = torch.optim.AdamW(
    [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": request["weight_decay"]},
        {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
    ],
    **request["adam"],
)


def published(kind, of):
    """{kind/published name: what `of` makes of the parameter}."""
    found = {}
    named = [(n, p) for n, p in model.named_parameters()]
    for k, depth in enumerate(mtp):
        own = {"enorm": depth.enorm, "hnorm": depth.hnorm, "eh_proj": depth.eh_proj, "shared_head.norm": depth.norm}
        named += [(f"model.layers.{first + k}.{n}.weight", p) for n, p in own.items()]
        named += [(f"model.layers.{first + k}.{n}", p) for n, p in depth.block.named_parameters()]
    for name, param in named:
        value = of(param).detach()
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                for part, half in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    found[f"{kind}/{name.removesuffix('gate_up_proj')}{e}.{part}.weight"] = half.clone()
        elif name.endswith("experts.down_proj"):
            for e, own in enumerate(value):
                found[f"{kind}/{name.removesuffix('down_proj')}{e}.down_proj.weight"] = own.clone()
        else:
            found[f"{kind}/{name}"] = value.clone()
    return found


def logprobs(hidden, ids, temperature=1.0):
    """Of each of `ids`, predicted by the row of `hidden` at the same place."""
    return (model.lm_head(hidden)[0] / temperature).log_softmax(-1).gather(1, ids[:, None])[:, 0]


def entropies(hidden, temperature):
    """Of what each row of `hidden` predicts, in nats."""
    logp = (model.lm_head(hidden)[0] / temperature).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).detach()


def learn(step):
    documents = step["documents"]
    total = sum(len(d["ids"]) - d["learn_from"] for d in documents)
    loss, spread, mtp_sums, mtp_counts = 0.0, torch.zeros(()), [0.0] * depths, [0] * depths
    for d in documents:
        ids, start = torch.tensor(d["ids"]), d["learn_from"]
        hidden = model.model(ids[None], use_cache=False).last_hidden_state
        logp = logprobs(hidden[:, :-1], ids[1:], step["temperature"])[start - 1 :]
        entropy = entropies(hidden[:, start - 1 : -1], step["temperature"])
        if step["loss"] == "likelihood":
            loss, spread = loss - logp.sum() / total, spread + entropy.sum() / total
        else:  # report Eq. 1 and 2, a mean over the output's tokens inside the mean over outputs
            ratio = (logp - torch.tensor(d["old"])).exp()
            bounded = ratio.clamp(1 - step["clip_low"], 1 + step["clip_high"])
            apart = torch.tensor(d["ref"]) - logp
            kl = apart.exp() - apart - 1
            objective = torch.minimum(ratio * d["adv"], bounded * d["adv"]) - step["kl_coef"] * kl
            loss = loss - objective.mean() / len(documents)
            spread = spread + entropy.mean() / len(documents)
        for k, depth in enumerate(mtp, 1):  # position i sees token i + k and predicts token i + k + 1
            hidden = depth(model.model.embed_tokens(ids[None, k:]), hidden[:, :-1])
            behind = logprobs(hidden[:, :-1], ids[k + 1 :])[max(0, start - k - 1) :]
            mtp_sums[k - 1] = mtp_sums[k - 1] - behind.sum()
            mtp_counts[k - 1] += len(behind)
    ahead = sum(s / n for s, n in zip(mtp_sums, mtp_counts, strict=True)) / depths if depths else torch.zeros(())
    return loss, ahead, spread


results, gradients = [], {}
for step in request["steps"]:
    optimizer.zero_grad()
    loss, ahead, spread = learn(step)
    (loss + request["lambda"] * ahead).backward()
    gradients = gradients or published("grad", lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
    norm = nn.utils.clip_grad_norm_(params, request["clip"])
    for group in optimizer.param_groups:
        group["lr"] = step["lr"]
    optimizer.step()
    figures = {"loss": loss, "mtp_loss": ahead, "grad_norm": norm, "entropy": spread}
    results.append({name: figure.item() for name, figure in figures.items()})
save_file({**gradients, **published("weight", lambda p: p)}, out)
print(json.dumps([type(model).__name__, results]))
