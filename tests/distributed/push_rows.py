"""On every rank: a policy at a layout, pushed to servers that run already.

`row(FOLDER, LAYOUT:TRANSPORT:SERVERS)`: the policy of FOLDER/model, with other weights and then with the own ones of
the folder, goes to the servers of FOLDER/SERVERS.json, two pushes of which both are proven. What the servers held
after the first goes to FOLDER/other.json.
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import httpx
import torch
from layouts import parse

from r1mega.config.cluster import RolloutLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.trainer import mesh as meshes


class Running:
    """To a pusher a `rollout.server.Server`: one that another process has started."""

    incarnation = 1

    def __init__(self, url: str, world_size: int, log_file: str) -> None:
        self.url, self.host, self.world_size, self.log_file = url, httpx.URL(url).host, world_size, Path(log_file)
        self.layout = RolloutLayout(health_timeout_s=120.0, max_restarts=0)

    def healthy(self, timeout_s: float, *, engine: bool = True) -> bool:
        return httpx.get(f"{self.url}/{'is_paused' if engine else 'health'}", timeout=timeout_s).status_code == 200

    def cause(self) -> None: ...


def numbers(url: str) -> dict[str, str]:
    """Of every part of every tensor that the workers of a server have, and vLLM's own digest of each parameter."""
    found: dict[str, str] = {}
    for method in ("r1mega_prove", ""):
        if method:
            body = {"method": method, "args": ["held"]}
            httpx.post(f"{url}/collective_rpc", json=body, timeout=600).raise_for_status()
        answer = httpx.post(f"{url}/weight_checker", json={"action": "checksum"}, timeout=600).raise_for_status()
        found |= {f"{method} {place}": number for place, number in answer.json()["checksums"].items()}
    return found


def disturb(policy: Any) -> None:
    """Other weights, all of them."""
    rank = int(os.environ.get("RANK", "0"))
    with torch.no_grad():
        for name, tensor in policy.state().items():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()) + rank)
            tensor += torch.randn(tensor.shape, generator=draw).to(tensor.dtype)
    policy.weights_changed()


def packed_over_gloo(link: Any, client: Any, source: Any) -> Any:
    """The nccl transport's sender, whose buffers gloo carries (push_worker.py)."""
    sys.path.append(str(Path(__file__).parents[1] / "unit"))
    from stand_in_vllm import GlooMeeting  # pyright: ignore[reportMissingImports]

    from r1mega.weights.packed import PackedSender

    return PackedSender(link, client, GlooMeeting())


def row(folder: Path, task: str) -> None:
    layout, transport, servers = task.split(":")
    mesh = meshes.start(parse(layout), device="cpu", seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.weights import push
    from r1mega.weights.hf_io import load_into
    from r1mega.weights.live_engine import Orders
    from r1mega.weights.push import Pusher
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        read_model(folder / "model"), mesh, Optimizer(lr=1e-3), Batch(chunk_tokens=64, chunks_per_micro_batch=1),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    push.BACKENDS["nccl over gloo"] = push.Backend(packed_over_gloo)
    source, orders = PolicySource(policy, include_mtp=False), Orders(mesh)
    targets: Any = [Running(**server) for server in json.loads((folder / f"{servers}.json").read_text())]
    for others in (True, False):
        load_into(policy, folder / "model")
        if others:
            disturb(policy)
        if not mesh.first:
            while orders.next() == "push":
                for _ in source:
                    pass
            orders.signal()
            continue
        pusher = Pusher(source, targets, announce=orders.push, backend=transport, bucket_mib=1, verify=1)
        report = pusher.push(1 + others)
        pusher.close()
        orders.go_on()
        assert report.proof is not None and report.proof.loaded == 0 and not report.recoveries
        if others:
            (folder / "other.json").write_text(json.dumps({server.url: numbers(server.url) for server in targets}))
