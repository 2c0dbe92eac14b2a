"""A policy's weights packed into chunks, read by a second process from the same memory (CUDA IPC; shared memory on
the CPU), then put aside in host memory stage by stage: what stays on the device, how long it takes, is all back."""

import time
from typing import Any

from report import ROOT, Report

SIZES = {
    "hidden_size": 4096, "intermediate_size": 8192, "moe_intermediate_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 32, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 16, "vocab_size": 32768,
}  # fmt: skip
"""0.9e9 parameters: more than one chunk of 1 GiB, and pinned host memory for them within seconds."""


def checksum(chunk: Any) -> int:
    """Of the bits, in order: [n] uint8, of which the last n % 8 do not count."""
    import torch

    words = chunk[: len(chunk) // 8 * 8].view(torch.int64)
    return int((words * torch.arange(1, len(words) + 1, device=words.device)).sum())  # wraps around, as int64 does


def receive(asked: Any, answered: Any) -> None:
    """The other process, as vLLM's worker: opens the buffer by its handle once, then tells the checksum of each chunk
    in it, and whether it lies on a GPU."""
    import torch
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    shown = asked.get()
    buffer = shown if isinstance(shown, torch.Tensor) else rebuild_cuda_tensor(*shown)
    while (num_bytes := asked.get()) is not None:
        answered.put((checksum(buffer[:num_bytes]), buffer.is_cuda))
    del buffer


def share(report: Report, policy: Any, bucket_bytes: int) -> None:
    """The chunks that a push by `ipc` hands over (`r1mega.weights.ipc`), read by a second process."""
    import torch.multiprocessing as processes

    from r1mega.weights.ipc import chunks, share_on_gpu
    from r1mega.weights.source import PolicySource

    context = processes.get_context("spawn")
    asked, answered = context.Queue(), context.Queue()
    other = context.Process(target=receive, args=(asked, answered))
    other.start()
    ours: list[Any] = []

    def shown(buffer: Any) -> Any:
        ours.append(buffer)
        if not report.cuda:
            asked.put(buffer.share_memory_())
            return {}
        handles = share_on_gpu(buffer)
        asked.put(next(iter(handles.values())))
        return handles

    try:
        total, taken, number = 0, 0.0, 0
        source = PolicySource(policy, include_mtp=False, everywhere=True)
        for bucket, _ in chunks(source, bucket_bytes, policy.mesh, shown):
            start = time.perf_counter()
            asked.put(bucket.num_bytes)
            seen, on_gpu = answered.get(timeout=60)
            if number:  # the first waits for the process to be up
                taken += time.perf_counter() - start
                total += bucket.num_bytes
            assert (seen, on_gpu) == (checksum(ours[0][: bucket.num_bytes]), report.cuda), number
            number += 1
        speed = round(total / taken / 2**30, 2) if taken else None
        report.note(chunks=number, bucket_bytes=len(ours[0]), read_gib_per_s=speed)
        asked.put(None)
        other.join(30)
        assert other.exitcode == 0, other.exitcode
    finally:
        other.kill()


def put_aside(report: Report, policy: Any) -> None:
    import torch

    from r1mega.trainer.offload import device_used_bytes

    before = {name: tensor.clone().cpu() for name, tensor in policy.state().items()}
    device = policy.mesh.device
    if report.cuda:
        torch.cuda.empty_cache()

    def used() -> Any:
        """GiB of the device, by whoever: what another process finds, which torch's own count does not tell."""
        found = device_used_bytes(device)
        return None if found is None else round(found / 2**30, 2)

    left = {"nothing": used()}
    start = time.perf_counter()
    policy.offload("optimizer", "gradients")
    left["optimizer, gradients"] = used()
    assert all(torch.equal(t.cpu(), before[n]) for n, t in policy.state().items())  # as a push reads them
    policy.offload()
    aside = time.perf_counter() - start
    left["all"] = used()
    report.note(used_gib_with_aside=left)
    if report.cuda:
        report.note(torch_residue_bytes=torch.cuda.memory_allocated())
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
