"""Which environment variables a cluster file may set, and what is to be done about those that it may not.

What r1mega sets itself would be overridden, or override it; what changes which numbers are computed is a setting with
a name, so that a run records it; and a secret would be written into every run directory.
"""

import re

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
"""What every shell takes for a variable's name."""
SECRET = re.compile(r"(^|_)(API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.I)
"""Names of variables whose values are written into no file."""
RECORDED = re.compile(
    r"(NCCL|GLOO|NVTE|CUDA|CUBLAS|UCX|OMPI|FI|TORCH|PYTORCH|VLLM|TRITON|HF|WANDB|OMP|MKL|KMP|NVIDIA)_\w+"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|TMPDIR|XDG_CACHE_HOME"
)
"""Names of variables that change how a run computes and speaks, and are written into run.json as they were found."""

_LAUNCHERS = "whoever starts the ranks sets it (slurm/, torchrun, or r1mega run)"
_COMPUTED_IN = "it changes what numbers are computed in; that is said by cluster.trainer.dtype and .precision"
_WANDB = "r1mega gives W&B its names and folders; set [wandb] in the stage's config"
_ENGINE = "r1mega gives its servers this variable themselves"
_REFUSED = (
    (r"R1MEGA_\w+", "r1mega's processes tell it each other"),
    (r"SLURM_\w+|SLURMD_\w+|SBATCH_\w+|SRUN_\w+", "Slurm sets it; give sbatch the option"),
    (r"RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT", _LAUNCHERS),
    (r"GROUP_\w+|ROLE_\w+|TORCHELASTIC_\w+", _LAUNCHERS),
    (r"CUDA_VISIBLE_DEVICES", "Slurm hands out GPUs, and cluster.rollout.gpus says which are the servers'"),
    (r"OMP_NUM_THREADS|MKL_NUM_THREADS", "set cluster.trainer.threads and cluster.rollout.threads"),
    (r"PATH|PYTHONHOME", "environment.venv, conda, modules or container say which programs are found"),
    (r"PYTHONPATH", "the code that runs is this checkout's; packages come from environment.venv, conda or container"),
    (r"PYTHONDONTWRITEBYTECODE", "r1mega takes it from its servers, which would compile everything at each start"),
    (r"LD_PRELOAD", "r1mega preloads the CPU's OpenMP library; have your image or module preload others"),
    (r"NVTE_ALLOW_NONDETERMINISTIC_ALGO|CUBLAS_WORKSPACE_CONFIG", "set cluster.trainer.deterministic"),
    (r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|VLLM_FLOAT32_MATMUL_PRECISION", _COMPUTED_IN),
    (r"NVTE_\w*FP8\w*|NVTE_DEBUG_NUMERICS\w*", _COMPUTED_IN),
    (r"VLLM_CACHE_ROOT", "set cluster.rollout.compile_cache"),
    (r"VLLM_CPU_KVCACHE_SPACE", "set cluster.rollout.kv_cache_gib"),
    (r"VLLM_(HOST_IP|PORT|API_KEY|CPU_OMP_THREADS_BIND|ENABLE_V1_MULTIPROCESSING|MLA_DISABLE)", _ENGINE),
    (r"VLLM_(NO_USAGE_STATS|MAX_STOP_STRINGS|SERVER_DEV_MODE|ALLOW_INSECURE_SERIALIZATION)", _ENGINE),
    (r"VLLM_(DP_\w+|WORKER_MULTIPROC_METHOD|BATCH_INVARIANT|PLUGINS|HTTP_TIMEOUT_KEEP_ALIVE)", _ENGINE),
    (r"TORCHDYNAMO_DISABLE", "set cluster.rollout.cuda_graphs"),
    (r"HF_HUB_OFFLINE", _ENGINE),
    (r"WANDB_(RUN_ID|RUN_GROUP|RESUME|NAME|PROJECT|ENTITY|DIR|SERVICE|DISABLE_WEAVE|JOB_TYPE)", _WANDB),
)
_OF_SERVERS = (
    (r"GLOO_SOCKET_IFNAME", "servers on one host speak over lo; those on several take [environment.variables]'s"),
)


def fault_of(name: str, *, servers: bool = False) -> str | None:
    """Why a cluster file may not set a variable, and what to do instead; None where it may.

    Args:
        servers: whether it is asked for of rollout servers alone.
    """
    if not NAME.fullmatch(name):
        return "is no name of an environment variable: letters, digits and _, the first no digit"
    if SECRET.search(name):
        return "holds a secret by its name, and a cluster file is copied into every run: export it where you submit"
    for pattern, remedy in (*_REFUSED, *(_OF_SERVERS if servers else ())):
        if re.fullmatch(pattern, name):
            return f"may not be set here: {remedy}"
    return None


def recorded(name: str) -> bool:
    """Whether a variable that a process has found is written into run.json."""
    return bool(RECORDED.fullmatch(name)) and not SECRET.search(name)
