"""A policy's weights packed into chunks, read by a second process from the same memory (CUDA IPC; shared memory on
the CPU), then everything put aside in host memory: what stays on the device, how long it takes, is it all back."""

import time
from collections.abc import Iterator
from typing import Any

from report import ROOT, Report

SIZES = {
    "hidden_size": 4096, "intermediate_size": 8192, "moe_intermediate_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 32, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 16, "vocab_size": 32768,
}  # fmt: skip
"""0.9e9 parameters: more than one chunk of 1 GiB, and pinned host memory for them within seconds."""


def checksum(chunk: Any) -> int:
    """Of the bits, in order: [n] uint8, n a multiple of 8."""
    import torch

    words = chunk.view(torch.int64)
    return int((words * torch.arange(1, len(words) + 1, device=words.device)).sum())  # wraps around, as int64 does


def packed(tensors: Any, bucket_bytes: int) -> Iterator[Any]:
    """The tensors' bytes one after the other, in chunks; the last is filled up with zeros."""
    import torch

    flat = [t.detach().contiguous().view(-1).view(torch.uint8) for t in tensors]
    room = torch.zeros(bucket_bytes, dtype=torch.uint8, device=flat[0].device)
    filled = 0
    for part in flat:
        while len(part):
            taken = min(len(part), bucket_bytes - filled)
            room[filled : filled + taken] = part[:taken]
            part, filled = part[taken:], filled + taken
            if filled == bucket_bytes:
                yield room
                room, filled = torch.zeros_like(room), 0
    if filled:
        yield room


def receive(asked: Any, answered: Any) -> None:
    """The other process: the checksum of every chunk that it is shown, and whether it lies on a GPU."""
    while (chunk := asked.get()) is not None:
        answered.put((checksum(chunk), chunk.is_cuda))
        del chunk  # the sender waits for this before it may free it


def share(report: Report, policy: Any, bucket_bytes: int) -> None:
    import torch.multiprocessing as processes

    context = processes.get_context("spawn")
    asked, answered = context.Queue(), context.Queue()
    other = context.Process(target=receive, args=(asked, answered))
    other.start()
    try:
        total, taken = 0, 0.0
        for number, chunk in enumerate(packed(policy.state().values(), bucket_bytes)):
            if not report.cuda:
                chunk.share_memory_()
            start = time.perf_counter()
            asked.put(chunk)
            seen, on_gpu = answered.get(timeout=60)
            if number:  # the first waits for the process to be up
                taken += time.perf_counter() - start
                total += len(chunk)
            assert (seen, on_gpu) == (checksum(chunk), report.cuda), number
        speed = round(total / taken / 2**30, 2) if taken else None
        report.note(chunks=number + 1, bucket_bytes=bucket_bytes, read_gib_per_s=speed)
        asked.put(None)
        other.join(30)
        assert other.exitcode == 0, other.exitcode
    finally:
        other.kill()


def put_aside(report: Report, policy: Any) -> None:
    import torch

    before = {name: tensor.clone().cpu() for name, tensor in policy.state().items()}
    total = 0
    if report.cuda:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        report.note(device_used_gib=round((total - free) / 2**30, 2))
    start = time.perf_counter()
    policy.offload()
    aside = time.perf_counter() - start
    if report.cuda:
        free, _ = torch.cuda.mem_get_info()  # what another process finds, which torch's own count does not tell
        report.note(residue_gib=round((total - free) / 2**30, 2), torch_residue_bytes=torch.cuda.memory_allocated())
    # Twice: the second time the host's memory is there.
    policy.onload()
    start = time.perf_counter()
    policy.offload()
    again = time.perf_counter() - start
    start = time.perf_counter()
    policy.onload()
    back = time.perf_counter() - start
    report.note(offload_s=[round(aside, 3), round(again, 3)], onload_s=round(back, 3))
    assert all(torch.equal(t.cpu(), before[n]) for n, t in policy.state().items())
    report.note(equal_bit_for_bit=True)


def main() -> None:
    import sys

    report = Report(__doc__ or "")
    sys.path.append(str(ROOT / "tools/bench"))
    import trainer as bench  # pyright: ignore[reportMissingImports]

    from r1mega.trainer import mesh

    bench.SHAPES["shared"] = SIZES if report.cuda else {}
    mesh.start(bench.TrainerLayout(), device=report.device, seed=0)
    from policies import make

    from r1mega.trainer.network import build

    build.initialise = bench.draw_in_place
    policy = make(
        report.device, spec=bench.shape("shared", 2), dtype="bf16", transformer_engine="off",
        precision={"moments": "bf16"},
    )  # fmt: skip
    share(report, policy, 1 << 30 if report.cuda else 1 << 20)
    put_aside(report, policy)


if __name__ == "__main__":
    main()
