"""`r1mega convert` against `cp -r` of the same bytes, and its anonymous memory at two sizes of model.

Synthetic DeepSeek-V3 folders in bf16 whose largest tensor is the same: only the number of layers differs. Each turn
copies the folder (synced), converts it to Megatron's form and back (synced, and the audit's second reading counted
in), and takes the ratio of bytes per second. Processes' start-up is left out. Each begins with its source out of the
page cache and after a rest: a virtual machine gives freed memory back to its host within seconds, so that whatever
wrote right after a removal would look fast. Memory is RssAnon as the kernel counts it, sampled over all processes of
a conversion; the highest sum and the highest of one process are kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import harness
import torch

from r1mega.conversion.convert import Options, convert
from r1mega.families.registry import model_of
from r1mega.families.spec import Kind, ModelSpec
from r1mega.formats.safetensors import lay_out
from r1mega.runtime.files import write_json
from r1mega.runtime.mapped import raw

TINY = harness.ROOT / "configs/tiny/deepseek_v3.json"
SOURCES = sorted((harness.ROOT / "r1mega/conversion").glob("*.py"))
SAMPLE_S = 0.02
REST_S = 5.0


def model(num_bytes: int) -> ModelSpec:
    """The model with as many layers as come nearest to a size in bf16."""
    fields = json.loads(TINY.read_text()) | {
        "vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 1024,
        "n_routed_experts": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 512,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "v_head_dim": 64, "num_nextn_predict_layers": 0,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    specs = [model_of({**fields, "num_hidden_layers": n}, TINY) for n in range(2, 40)]
    return min(specs, key=lambda spec: abs(size(spec) - num_bytes))


def size(spec: ModelSpec) -> int:
    return sum(2 * torch.Size(row.shape).numel() for row in spec.tensors())


def generate(spec: ModelSpec, folder: Path) -> None:
    """Write the model with random finite weights, a tensor at a time."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(spec.hf)))
    tensors = [
        (name, "F32" if row.kind is Kind.BUFFER else "BF16", shape)
        for row in spec.tensors()
        for name, shape in zip(row.hf, row.hf_shapes, strict=True)
    ]
    header, entries, total = lay_out(tensors)
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for entry in entries:
            bits = torch.randint(0, 1 << 14, (entry.num_bytes // 2,), generator=generator, dtype=torch.int16)
            file.write(raw(bits))
        assert file.tell() == total
        os.fsync(file.fileno())


class AnonymousMemory:
    """The highest RssAnon of a process tree while entered, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self._stop = pid, threading.Event()
        self.total = self.of_one = 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "AnonymousMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            sizes = [_anonymous(pid) for pid in _tree(self._pid)]
            self.total = max(self.total, sum(sizes))
            self.of_one = max(self.of_one, *sizes, 0)


def _tree(pid: int) -> list[int]:
    try:
        children = [int(c) for f in Path(f"/proc/{pid}/task").glob("*/children") for c in f.read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(p for child in children for p in _tree(child))]


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def settle(source: Path, rest_s: float) -> None:
    """Let the machine rest, and forget what it has read of a folder."""
    time.sleep(rest_s)
    for file in source.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(source: Path, out: Path, rest_s: float) -> float:
    """Seconds of a synced copy."""
    settle(source, rest_s)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    for file in [*out.iterdir(), out]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began


def conversion(source: Path, out: Path, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """One conversion in processes of its own: its seconds and its memory."""
    settings = (str(options.processes), str(options.rest_s))
    command = [sys.executable, __file__, "--one", str(source), str(out), form, *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with AnonymousMemory(process.pid) as memory:
        said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    found = json.loads(said.splitlines()[-1])
    return found | {"anonymous_bytes": memory.total, "anonymous_bytes_of_one": memory.of_one}


def one(source: str, out: str, form: str, processes: str, rest_s: str) -> None:
    torch.set_num_threads(1)
    settle(Path(source), float(rest_s))
    options = Options(int(processes), without_tokenizer=True)
    report = convert(Path(source), Path(out), "hf" if form == "hf" else "megatron", None, options)
    print(json.dumps({"bytes": report.num_bytes, "convert_s": report.convert_s, "audit_s": report.audit_s}))


def measure(folder: Path, num_bytes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Turns of copy, to Megatron and back at one size."""
    spec = model(num_bytes)
    generate(spec, folder / "hf")
    largest = max(2 * torch.Size(s).numel() for row in spec.tensors() for s in (*row.hf_shapes, row.shape))
    case: dict[str, Any] = {"bytes": size(spec), "layers": spec.num_layers, "largest_tensor_bytes": largest}
    case["turns"] = []
    for _ in range(options.turns):
        seconds = {"cp": copy(folder / "hf", folder / "copy", options.rest_s)}
        shutil.rmtree(folder / "copy")
        turn: dict[str, Any] = {"load_1min": os.getloadavg()[0], "cp_mb_per_s": size(spec) / 1e6 / seconds["cp"]}
        for form, source in (("megatron", "hf"), ("hf", "megatron")):
            out = folder / ("megatron" if form == "megatron" else "back")
            found = conversion(folder / source, out, form, options)
            rate = found["bytes"] / 1e6 / (found["convert_s"] + found["audit_s"])
            turn[f"to_{form}"] = found | {"mb_per_s": rate, "rate_ratio": rate / turn["cp_mb_per_s"]}
        for name in ("megatron", "back"):
            shutil.rmtree(folder / name)
        case["turns"].append(turn)
        print(json.dumps(turn), flush=True)
    shutil.rmtree(folder / "hf")
    return case


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where some 3 times the largest model fits")
    parser.add_argument("--sizes-gb", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rest-s", type=float, default=REST_S, help="before each; 0 where memory alone is wanted")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    needed = max(options.sizes_gb) * 3.5e9
    if shutil.disk_usage(options.folder).free < needed:
        raise SystemExit(f"{options.folder}: {needed / 1e9:.0f} GB are needed")
    about = {"about": " ".join((__doc__ or "").split()), "processes": options.processes}
    about |= harness.provenance(["torch", "megatron-core", "safetensors"], [Path(__file__).resolve(), *SOURCES])
    cases = []
    for gigabytes in options.sizes_gb:
        work = options.folder / f"convert_{gigabytes:g}"
        shutil.rmtree(work, ignore_errors=True)
        try:
            cases.append(measure(work, int(gigabytes * 1e9), options))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    result: dict[str, Any] = {**about, "cases": cases}
    if len(cases) > 1:
        small, large = cases[0], cases[-1]
        peaks = [max(t[f]["anonymous_bytes"] for t in c["turns"] for f in ("to_megatron", "to_hf")) for c in cases]
        result["anonymous_growth_bytes"] = peaks[-1] - peaks[0]
        result["anonymous_growth_over_largest_tensor"] = (peaks[-1] - peaks[0]) / large["largest_tensor_bytes"]
        assert small["largest_tensor_bytes"] == large["largest_tensor_bytes"]
    result["rate_ratio"] = {
        form: harness.spread([t[form]["rate_ratio"] for t in cases[-1]["turns"]]) for form in ("to_megatron", "to_hf")
    }
    print(json.dumps({k: result[k] for k in result if k not in ("cases", "sources", "about")}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)


if __name__ == "__main__":
    main()
