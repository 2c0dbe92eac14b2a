"""How servers are started: golden files for each cluster file, which vLLM's own parser takes, and their reasons."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import Cluster, RolloutLayout
from r1mega.config.load import load_cluster
from r1mega.rollout.command import (
    ServedFolder,
    ServerPlace,
    Start,
    command,
    cuda_environment,
    environment,
    gpus_of,
    places_of,
)
from r1mega.rollout.several import begin_all

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted(path.stem for path in (ROOT / "configs/cluster").glob("*.toml"))
GOLDENS = ROOT / "tests/unit/goldens/servers"
REMEDY = "look at what changed; `python tools/server_commands.py` writes the golden files"
V3 = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_routed_experts": 256}
QWEN = {"hidden_size": 1536}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}


def golden(cluster: str) -> list[dict[str, Any]]:
    return json.loads((GOLDENS / f"{cluster}.json").read_text())


def line_of(
    config: dict[str, Any], machine: Cluster, *, trains: bool = True, start: Start | None = None
) -> list[str]:
    folder = ServedFolder.of(Path("/m"), config)
    place = ServerPlace.of(machine, trains=trains)
    return command(folder, machine.rollout, place, start or Start("127.0.0.1", 20000, 4096, 0))


def cuda(**tables: Any) -> Cluster:
    rollout = {"dtype": "bf16", **tables.pop("rollout", {})}
    return Cluster.model_validate({"device": "cuda", "gpus_per_node": 8, "rollout": rollout, **tables})


def test_golden_files_are_what_servers_are_started_with():
    tool = runpy.run_path(str(ROOT / "tools/server_commands.py"))
    assert sorted(tool["MODELS"]) == CLUSTERS == sorted(file.stem for file in GOLDENS.iterdir())
    for cluster in CLUSTERS:
        assert tool["written"](cluster) == (GOLDENS / f"{cluster}.json").read_text(), f"{cluster}: {REMEDY}"


PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.model_executor.models.deepseek_v2 import _get_moe_router_dtype
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
lines, parts, forms = json.load(sys.stdin)
parser = make_arg_parser(FlexibleArgumentParser())
known = {text for action in parser._actions for text in action.option_strings}
def engine(line):
    given = parser.parse_args(line)
    given.skip_tokenizer_init = True
    return AsyncEngineArgs.from_cli_args(given)
for line in lines:
    named = [word.partition("=")[0] for word in line if word.startswith("--")]
    assert set(named) <= known, set(named) - known
    validate_parsed_serve_args(parser.parse_args(line))
found = {"parts": [], "forms": []}
for line in parts:
    has = engine(line).create_engine_config(UsageContext.OPENAI_API_SERVER, "--headless" in line).parallel_config
    found["parts"].append([has.world_size_across_dp, has.data_parallel_rank, has.data_parallel_size_local,
        has.nnodes_within_dp, has.data_parallel_master_ip, has.data_parallel_rpc_port, has.enable_expert_parallel])
for line in forms:
    asked = engine(line)
    has = asked.create_model_config()
    dtypes = [str(has.head_dtype), str(_get_moe_router_dtype(has.hf_config))]
    found["forms"].append([*dtypes, has.quantization, has.model_arch_config.quantization_config, asked.load_format])
print("found", json.dumps(found))
"""
FORMS = ((True, True), (False, True), (True, False))
"""In which FP8 is asked for, and a trainer pushes."""


def own_arguments(line: list[str]) -> list[str]:
    return line[next(i for i, word in enumerate(line) if word.startswith("--")) :]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM makes of golden lines, of a server's parts on 8 hosts, and of forms of weights; it takes no GPU."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or not Path(str(vllm.origin)).with_name("engine").exists():
        pytest.skip("no vLLM here, or a stand-in (tests/without_vllm)")
    folder = tmp_path_factory.mktemp("v3")
    config = json.loads((ROOT / "configs/models/DeepSeek-V3-Base/config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    machine, here = load_cluster("h800_v3", []), ServedFolder.read(folder)
    place = ServerPlace.of(machine, trains=True)
    parts = [
        command(here, machine.rollout, place, Start("node65", 20000, 4096, 0, node, "127.0.0.1")) for node in (0, 7)
    ]
    forms = []
    for fp8, trains in FORMS:
        one = cuda(weights={"fp8": fp8})
        forms.append(
            command(here, one.rollout, ServerPlace.of(one, trains=trains), Start("127.0.0.1", 20000, 4096, 0))
        )
    goldens = [row["command"] for cluster in CLUSTERS for row in (golden(cluster)[0], golden(cluster)[-1])]
    asked = [[own_arguments(line) for line in lines] for lines in (goldens, parts, forms)]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found "))[6:])


def test_vllms_own_parser_takes_each_cluster_files_first_and_last_line(made: dict[str, Any]):
    """By whole names alone: the parser would take the beginning of one for it. See `made`, which asserts it."""
    assert made
    for cluster in CLUSTERS:
        flags = [{word for word in row["command"] if word.startswith("--")} for row in golden(cluster)]
        assert set.union(*flags) == flags[0] | flags[-1], f"{cluster}: others have flags of their own"


def test_vllm_makes_one_server_of_its_parts_on_several_hosts(made: dict[str, Any]):
    """64 ranks, a data-parallel copy a host, of which each part knows its own."""
    assert made["parts"] == [[64, rank, 1, 1, "127.0.0.1", 20002, True] for rank in (0, 7)]


def test_vllm_computes_head_and_router_in_fp32_and_has_weights_in_the_form_that_is_asked(made: dict[str, Any]):
    fp32 = ["torch.float32", "torch.float32"]
    assert made["forms"] == [
        [*fp32, "fp8", FP8, "dummy"], [*fp32, None, None, "auto"], [*fp32, "fp8_per_block", None, "auto"],
    ]  # fmt: skip


def test_a_cpu_server_is_started_as_ever():
    """Every argument but the folder's, the port's and the length's, as measured runs were started with them."""
    line = line_of(QWEN, load_cluster("laptop", []))
    assert line[1:] == [
        "-m", "vllm.entrypoints.openai.api_server", "--model", "/m", "--served-model-name", "policy",
        "--host", "127.0.0.1", "--port", "20000", "--seed", "0", "--distributed-executor-backend", "uni",
        "--dtype", "float32", "--tensor-parallel-size", "1", "--max-model-len", "4096", "--max-num-seqs", "256",
        "--max-num-batched-tokens", "4096", "--kv-cache-memory-bytes", "536870912", "--block-size", "32",
        "--logprobs-mode", "processed_logprobs", "--compilation-config",
        '{"custom_ops": ["all", "-rotary_embedding"]}', "--weight-transfer-config", '{"backend": "gloo"}',
        *line[line.index("--worker-extension-cls") : line.index("--worker-extension-cls") + 2],
        "--uvicorn-log-level", "warning", "--enforce-eager", "--enable-prefix-caching",
        "--disable-uvicorn-access-log", "--no-enable-log-requests", "--no-enable-chunked-prefill",
    ]  # fmt: skip
    with_latent = line_of(V3, load_cluster("laptop", []))
    assert with_latent[with_latent.index("--block-size") + 1] == "16"
    found = environment(ServedFolder.of(Path("/m"), QWEN), load_cluster("laptop", []).rollout, ServerPlace())
    assert found["VLLM_MLA_DISABLE"] == found["TORCHDYNAMO_DISABLE"] == "1"
    assert (found["VLLM_ENABLE_V1_MULTIPROCESSING"], found["VLLM_CPU_OMP_THREADS_BIND"]) == ("0", "nobind")
    assert "VLLM_MLA_DISABLE" not in environment(
        ServedFolder.of(Path("/m"), V3), load_cluster("laptop", []).rollout, ServerPlace()
    )


def value(line: list[str], name: str) -> str | None:
    return line[line.index(f"--{name}") + 1] if f"--{name}" in line else None


@pytest.mark.parametrize(
    "name", ["enforce-eager", "block-size", "compilation-config", "distributed-executor-backend"]
)
def test_what_gpus_do_better_is_left_to_vllm(name: str):
    assert f"--{name}" not in line_of(V3, load_cluster("h800_v3", []))
    assert all(
        word not in line_of(QWEN, cuda()) for word in ("--no-enable-chunked-prefill", "--max-num-batched-tokens")
    )
    found = environment(ServedFolder.of(Path("/m"), QWEN), cuda().rollout, ServerPlace.of(cuda(), trains=True))
    assert not {"TORCHDYNAMO_DISABLE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_MLA_DISABLE"} & found.keys()


@pytest.mark.parametrize(
    ("setting", "name", "said"),
    [
        ({"cuda_graphs": False}, "enforce-eager", None),
        ({"max_num_batched_tokens": 8192}, "max-num-batched-tokens", "8192"),
        ({"max_num_seqs": 77}, "max-num-seqs", "77"),
        ({"kv_cache_gib": 1.5}, "kv-cache-memory-bytes", str(3 * 2**29)),
        ({"tp": 2}, "tensor-parallel-size", "2"),
        ({"dp": 2}, "data-parallel-size", "2"),
        ({"expert_parallel": True}, "enable-expert-parallel", None),
        ({"moe_backend": "deep_gemm"}, "moe-backend", "deep_gemm"),
        ({"dtype": "fp32"}, "dtype", "float32"),
    ],
)
def test_each_setting_reaches_the_command_line(setting: dict[str, Any], name: str, said: str | None):
    usual, changed = line_of(V3, cuda()), line_of(V3, cuda(rollout=setting))
    assert changed != usual and f"--{name}" in changed
    if said is not None:
        assert value(changed, name) == said != value(usual, name)
    else:
        assert f"--{name}" not in usual


def test_the_engines_own_interpreter_and_cache_are_used():
    machine = cuda(rollout={"python": "/engine/bin/python", "compile_cache": "/scratch/vllm"})
    assert line_of(QWEN, machine)[0] == "/engine/bin/python" != line_of(QWEN, cuda())[0] == sys.executable
    found = cuda_environment(machine.rollout, ServerPlace.of(machine, trains=True))
    assert found["VLLM_CACHE_ROOT"] == "/scratch/vllm"
    assert (Path(found["PYTHONPATH"]) / "r1mega/rollout/command.py").is_file()  # where it finds the worker extension
    plain = cuda_environment(cuda().rollout, ServerPlace.of(cuda(), trains=True))
    assert not {"VLLM_CACHE_ROOT", "PYTHONPATH"} & plain.keys()


def test_head_and_router_compute_in_fp32_and_only_deepseeks_router_can():
    said = {name: json.loads(str(value(line_of(c, cuda()), "hf-overrides"))) for name, c in (("v3", V3), ("q", QWEN))}
    assert said == {"v3": {"head_dtype": "float32", "moe_router_dtype": "float32"}, "q": {"head_dtype": "float32"}}
    assert value(line_of(QWEN, cuda()), "moe-backend") is None


@pytest.mark.parametrize(
    ("stored", "fp8", "trains", "overridden", "others"),
    [
        (False, False, True, {}, {}),
        (True, True, True, {}, {}),
        (False, True, True, {"quantization_config": FP8}, {"load-format": "dummy"}),
        (True, False, True, {"quantization_config": None}, {"load-format": "dummy"}),
        (False, True, False, {}, {"quantization": "fp8_per_block"}),
        (True, False, False, {}, {}),  # nothing is pushed: served as it is stored
    ],
)
def test_in_which_form_weights_are_kept(stored, fp8, trains, overridden, others):
    """A folder's weights are read only in their own form; where others are pushed, none are read."""
    config = {**V3, **({"quantization_config": FP8} if stored else {})}
    line = line_of(config, cuda(weights={"fp8": fp8}), trains=trains)
    said = json.loads(str(value(line, "hf-overrides")))
    assert {k: v for k, v in said.items() if k == "quantization_config"} == overridden
    assert {name: value(line, name) for name in ("load-format", "quantization") if value(line, name)} == others


def test_each_server_has_gpus_of_its_own_within_those_that_this_process_sees():
    machine = cuda(trainer={"tp": 2, "dp": 2}, rollout={"servers": 2, "tp": 2})
    assert gpus_of(machine, trains=True) == (4, 5, 6, 7) and gpus_of(machine, trains=False) == (0, 1, 2, 3)
    layout = machine.rollout

    def devices(number: int, visible: str | None = None) -> str:
        place = ServerPlace.of(machine, number, trains=True)
        return cuda_environment(layout, place, visible=visible)["CUDA_VISIBLE_DEVICES"]

    assert (devices(0), devices(1)) == ("4,5", "6,7")
    assert devices(1, "8,9,10,11,12,13,14,GPU-a") == "14,GPU-a"
    named = cuda(trainer={"dp": 2}, rollout={"servers": 2, "gpus": (7, 3)})
    assert [ServerPlace.of(named, number, trains=True).gpus for number in (0, 1)] == [(7,), (3,)]
    assert gpus_of(cuda(trainer={"dp": 8}), trains=True) == ()  # the node is full: on others
    assert "CUDA_VISIBLE_DEVICES" not in cuda_environment(layout, ServerPlace(device="cuda"))


def test_servers_that_are_begun_together_have_a_place_each():
    begun: list[Any] = []
    machine = cuda(trainer={"dp": 2}, rollout={"servers": 2, "port": 21000})

    def begin(mark: str, layout: RolloutLayout, place: ServerPlace) -> Any:
        begun.append((mark, layout.port, place.gpus, place.device))
        return SimpleNamespace(stop=lambda: None)

    begin_all(begin, machine.rollout, places_of(machine, trains=True))
    assert begun == [("-0", 21000, (2,), "cuda"), ("-1", 21001, (3,), "cuda")]
    begin_all(begin, machine.rollout, ())
    assert begun[2:] == [("-0", 21000, (), "cpu"), ("-1", 21001, (), "cpu")]


def test_a_colocated_server_sleeps_on_the_trainers_gpus_and_takes_handles_of_memory():
    machine = cuda(trainer={"dp": 2}, rollout={"servers": 2}, placement="colocated")
    place = ServerPlace.of(machine, 1, trains=True)
    line, found = line_of(QWEN, machine), cuda_environment(machine.rollout, place)
    assert place.gpus == (1,) and "--enable-sleep-mode" in line and value(line, "gpu-memory-utilization") == "0.05"
    assert value(line, "weight-transfer-config") == '{"backend": "ipc"}'
    assert found["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    alone = line_of(QWEN, machine, trains=False)  # an evaluation: nobody to share with
    assert "--enable-sleep-mode" not in alone and "--gpu-memory-utilization" not in alone
    apart = cuda_environment(cuda().rollout, ServerPlace.of(cuda(), trains=True))
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in apart and "--enable-sleep-mode" not in line_of(QWEN, cuda())


def test_a_server_of_several_hosts_is_a_part_on_each_of_them():
    machine = load_cluster("h800_v3", [])
    place = ServerPlace.of(machine, trains=True)
    first, last = (line_of(V3, machine, start=Start("node65", 20000, 4096, 0, node, "10.1.0.65")) for node in (0, 7))
    assert place.hosts == 8 and place.gpus == ()
    told = ("nnodes", "node-rank", "master-addr", "master-port", "data-parallel-rpc-port", "host", "api-server-count")
    assert [value(first, name) for name in told] == ["8", "0", "10.1.0.65", "20001", "20002", "0.0.0.0", "1"]
    assert [value(last, name) for name in told[:2]] == ["8", "7"] and "--headless" in last
    assert "--headless" not in first and "--api-server-count" not in last
    found = cuda_environment(machine.rollout, place, own_address="10.1.0.68")
    assert found["VLLM_HOST_IP"] == "10.1.0.68" and "GLOO_SOCKET_IFNAME" not in found
    assert ServerPlace.of(cuda(rollout={"tp": 8}), trains=True).hosts == 1
