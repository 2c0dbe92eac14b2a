"""The [environment] table of a cluster file: what it takes and refuses, and the shell that is made of it."""

import subprocess
from pathlib import Path

import pytest

from r1mega import cli
from r1mega.config import variables
from r1mega.config.cluster import Cluster
from r1mega.config.entering import shell_lines
from r1mega.config.environment import Environment
from r1mega.config.load import load_cluster
from r1mega.errors import ConfigError
from r1mega.rollout.command import ServedFolder, ServerPlace, environment
from r1mega.runtime import process

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests/unit/goldens/environments"
CHECKOUT = Path("/home/me/r1mega")
KINDS = {
    "plain": {},
    "pyxis": {"container": {"kind": "pyxis", "image": "/images/r1mega.sqsh", "mounts": ["/data", "/w:/work:ro"]}},
    "apptainer": {"container": {"kind": "apptainer", "image": "docker://r1mega:gpu", "mounts": ["/data:/data"]}},
    "venv": {"modules": ["cuda/13.0", "gcc"], "venv": "/envs/r1mega", "variables": {"NCCL_SOCKET_IFNAME": "=ib0"}},
    "conda": {"conda": "r1mega", "trainer": {"NVTE_FLASH_ATTN": 1}, "rollout": {"VLLM_LOGGING_LEVEL": "WARNING"}},
}
PYXIS = ("container.kind=pyxis", "container.image=/i.sqsh")
HOSTILE = {
    "NCCL_A": "a b",
    "NCCL_B": "$(touch pwned)`touch pwned`",
    "NCCL_C": 'it\'s "quoted" \\ and; touch pwned',
    "NCCL_D": "two\nlines\ttab *",
    "NCCL_E": "--option=x",
    "NCCL_F": "ünïcode ☃ $HOME ${PATH}",
}


def machine(device: str = "cuda", **table: object) -> Cluster:
    return Cluster(device=device, environment=Environment.model_validate(table))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_cluster(str(ROOT / "configs/cluster/laptop.toml"), [f"environment.{one}" for one in overrides])
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_entered_as_its_golden_file_says(kind: str):
    """To write one anew: delete it, run this, and look at what has changed."""
    lines, golden = shell_lines(machine(**KINDS[kind]), CHECKOUT) + "\n", GOLDENS / f"{kind}.sh"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(lines)
        pytest.fail(f"{golden} was written: look at it")
    assert lines == golden.read_text()
    assert {path.stem for path in GOLDENS.iterdir()} <= set(KINDS)


def bash(lines: str, script: str, cwd: Path) -> list[str]:
    """What the script prints, divided at zero bytes."""
    done = subprocess.run(["bash", "-euc", f"{lines}\n{script}"], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_whatever_a_value_holds_a_real_bash_takes_it_for_text(tmp_path):
    table = {"variables": HOSTILE, "rollout": {"VLLM_X": "'; exit 3; '"}, "modules": ["a$(touch", "b;touch"]}
    lines = shell_lines(machine(**table), CHECKOUT)
    found = bash(lines, r'printf "%s\0" "${environment_trainer[@]}" "${environment_modules[@]}"', tmp_path)
    assert found == [*(f"{name}={value}" for name, value in HOSTILE.items()), "a$(touch", "b;touch"]
    said = bash(lines, r'env -i "${environment_rollout[@]}" /usr/bin/env -0', tmp_path)
    assert dict(one.split("=", 1) for one in said) == {**HOSTILE, "VLLM_X": "'; exit 3; '"}
    assert list(tmp_path.iterdir()) == []


def test_an_image_and_mounts_are_words_whatever_they_hold(tmp_path):
    image = "/i/$(touch pwned) a.sqsh"
    for kind, array in (("pyxis", "srun"), ("apptainer", "within")):
        lines = shell_lines(machine(container={"kind": kind, "image": image, "mounts": ["/d'x"]}), CHECKOUT)
        words = bash(lines, rf'printf "%s\0" "${{environment_{array}[@]}}" "$environment_image"', tmp_path)
        assert words[-1] == image
        assert any(word in (image, f"--container-image={image}") for word in words[:-1])
        assert any(word.endswith(f"{CHECKOUT}:{CHECKOUT},/d'x:/d'x") for word in words)
    assert list(tmp_path.iterdir()) == []


def test_apptainer_brings_the_driver_where_there_are_gpus():
    container = {"kind": "apptainer", "image": "/i.sif"}
    assert "apptainer exec --nv --no-home" in shell_lines(machine(container=container), CHECKOUT)
    assert "apptainer exec --no-home" in shell_lines(machine("cpu", container=container), CHECKOUT)
    for gpus, option in (("nvccli", "exec --nvccli --no-home"), ("none", "exec --no-home"), ("nv", "exec --nv ")):
        assert option in shell_lines(machine("cpu", container={**container, "gpus": gpus}), CHECKOUT)


def test_a_checkout_that_no_mount_can_name_is_refused():
    table = {"container": {"kind": "pyxis", "image": "/i.sqsh"}}
    with pytest.raises(ConfigError, match=r"the checkout /a,b has a comma.*move it"):
        shell_lines(machine(**table), Path("/a,b"))
    shell_lines(machine(), Path("/a,b"))  # nothing is mounted


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("RANK", "whoever starts the ranks"),
        ("MASTER_PORT", "whoever starts the ranks"),
        ("TORCHELASTIC_RUN_ID", "whoever starts the ranks"),
        ("R1MEGA_SET", "tell it each other"),
        ("SLURM_NTASKS", "give sbatch the option"),
        ("CUDA_VISIBLE_DEVICES", "cluster.rollout.gpus"),
        ("OMP_NUM_THREADS", "cluster.trainer.threads"),
        ("PATH", "environment.venv"),
        ("PYTHONPATH", "environment.venv"),
        ("LD_PRELOAD", "OpenMP"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "cluster.trainer.deterministic"),
        ("CUBLAS_WORKSPACE_CONFIG", "cluster.trainer.deterministic"),
        ("NVIDIA_TF32_OVERRIDE", "cluster.trainer.dtype"),
        ("NVTE_FP8_DPA_BWD", "cluster.trainer.dtype"),
        ("VLLM_CACHE_ROOT", "rollout.compile_cache"),
        ("WANDB_RUN_ID", "[wandb]"),
        ("HF_TOKEN", "a secret"),
        ("WANDB_API_KEY", "a secret"),
        ("AWS_SECRET_ACCESS_KEY", "a secret"),
        ("1X", "no name"),
        ("A-B", "no name"),
    ],
)
def test_what_r1mega_sets_what_changes_results_and_secrets_are_refused_with_the_remedy(name: str, remedy: str):
    for table in ("variables", "trainer", "rollout"):
        said = refused(f"{table}.{name}=s3cr3t")
        assert f"environment.{table}.{name}: " in said and remedy in said
        assert "s3cr3t" not in said


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "GLOO_SOCKET_IFNAME", "NVTE_FLASH_ATTN", "VLLM_LOGGING_LEVEL",
        "VLLM_NCCL_SO_PATH", "HF_HOME", "HF_ENDPOINT", "WANDB_MODE", "WANDB_BASE_URL", "TOKENIZERS_PARALLELISM",
        "PYTORCH_CUDA_ALLOC_CONF", "LD_LIBRARY_PATH", "MELLANOX_VISIBLE_DEVICES", "https_proxy", "TMPDIR",
    ],
)  # fmt: skip
def test_what_a_cluster_needs_may_be_set(name: str):
    assert machine(variables={name: "x"}).environment.of_trainer == {name: "x"}


def test_a_servers_interface_is_the_hosts_where_it_has_one_host():
    assert "lo" in refused("rollout.GLOO_SOCKET_IFNAME=ib0")


_MORE = ["rollout.compile_cache=/c", "rollout.python=/p"]


def test_every_variable_that_servers_are_given_is_refused():
    """Of each kind of server, so that none that is added to r1mega/rollout/command.py is forgotten."""
    folder = ServedFolder(Path("/m"), mla=False, mixture=True, quantized=False)
    several = load_cluster(str(ROOT / "configs/cluster/h800_v3.toml"), _MORE)
    shared = load_cluster(str(ROOT / "configs/cluster/gpu1.toml"))
    for one in (several, shared, machine("cpu")):
        place = ServerPlace.of(one, trains=True)
        given = environment(folder, one.rollout, place, own_address="10.0.0.1")
        assert len(given) > 4
        assert [name for name in given if variables.fault_of(name, servers=True) is None] == []


def test_every_variable_that_children_are_not_given_is_refused(monkeypatch):
    names = [
        "PYTHONDONTWRITEBYTECODE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "R1MEGA_SET", "LOCAL_RANK",
        "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "GROUP_RANK",
    ]  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "1")
        assert variables.fault_of(name), name
    assert not set(names) & process.child_environment().keys()


def test_values_are_texts_or_whole_numbers():
    assert machine(variables={"NCCL_IB_TIMEOUT": 22}).environment.variables == {"NCCL_IB_TIMEOUT": "22"}
    for value in ("true", "1.5", '["a"]'):
        said = refused(f"variables.NCCL_X={value}")
        assert "environment.variables.NCCL_X: " in said
        assert "quotes" in said or "string" in said


def test_two_interpreters_are_one_too_many():
    assert "venv and conda would each bring the interpreter" in refused("venv=/a", "conda=b")
    assert "venv and container would" in refused("venv=/a", "container.kind=pyxis", "container.image=/i.sqsh")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["container.kind=docker", "container.image=/i"], "environment.container.kind: input should be 'pyxis'"),
        (["container.image=/i"], "environment.container.kind: missing"),
        ([*PYXIS, "container.gpus=nv"], "gpus is Apptainer's"),
        ([*PYXIS, "container.image=-x"], "begins as an option does"),
        ([*PYXIS, 'container.mounts=["data"]'], "container.mounts.0: string should match"),
        ([*PYXIS, 'container.mounts=["/a,/b"]'], "container.mounts.0: string should match"),
        (['modules=["a b"]'], "environment.modules.0: string should match"),
        (['modules=["-x"]'], "environment.modules.0: string should match"),
        (["checks.report_s=0"], "environment.checks.report_s: input should be greater than 0"),
        (["varables.X=1"], "unknown key (did you mean 'variables'?)"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: list[str], said: str):
    assert said in refused(*overrides)


def test_relative_paths_count_from_the_cluster_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('device = "cpu"\n[environment.container]\nkind = "apptainer"\nimage = "./r1mega.sif"\n')
    assert load_cluster(str(file)).environment.image_file == tmp_path / "r1mega.sif"
    file.write_text('device = "cpu"\n[environment]\nvenv = "env"\n')
    assert load_cluster(str(file)).environment.venv == tmp_path / "env"
    # Registries' addresses are no paths.
    assert machine(container={"kind": "pyxis", "image": "nvcr.io#a/b:1"}).environment.image_file is None


def test_check_prints_the_lines_and_nothing_else(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    words = ["--set", "cluster.environment.variables.NCCL_A=a b", "--set", "num_steps=3", "--print", "environment"]
    cli.app(["check", "none.toml", *words], standalone_mode=False)  # the stage is not looked at
    found = capfd.readouterr().out
    assert found == shell_lines(load_cluster("laptop", ["environment.variables.NCCL_A=a b"]), ROOT) + "\n"
    assert "environment_variables=('NCCL_A=a b')\n" in found
