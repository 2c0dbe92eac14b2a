"""A chain of eight small stages whose processes are replaced by a recorder: it writes real run directories, with
outputs that follow from a stage's settings and from the content of what it reads, and from nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from r1mega.pipeline import chain as chains
from r1mega.pipeline.graph import load_pipeline
from r1mega.pipeline.plan import ALL, PipelineRun, Planned, Selection
from r1mega.runtime import files
from r1mega.runtime.digests import digest_of
from r1mega.runtime.run_dir import RunDir

ROOT = Path(__file__).parents[2]
NAMES = ["base", "pairs", "rm", "sft", "rl", "eval", "control", "other"]
TRAINED = """
[batch]
chunk_tokens = 256
[optimizer]
lr = 1e-3
[save]
every_steps = 10
"""
TASK = """
kind = "reasoning_gym"
family = "chain_sum"
params = { min_terms = 2, max_terms = 2, min_digits = 1, max_digits = 1 }
num = 40
"""
PRETRAIN = f"""stage = "pretrain"  # the comment
num_steps = 20
documents_per_step = 4
[model]
config = "../model.json"
[data]
num_documents = 100
styles = {{ think = 0.25, tags = 0.25, steps = 0.25, plain = 0.25 }}
[[tasks]]
name = "chain_sum"
{TRAINED}"""
ASKS = f"""
[sampling]
temperature = 1.0
max_new_tokens = 8
[evaluation]
every_steps = 1
[[evaluation.questions]]{TASK}"""
CONFIGS = {
    "base": PRETRAIN,
    "control": PRETRAIN.replace('config = "../model.json"', 'path = "../../no/hf"'),
    "pairs": f"""stage = "preferences"
[model]
path = "../../no/hf"
[[questions]]{TASK}
[sampling]
max_new_tokens = 8
[judge.endpoint]
url = "http://127.0.0.1:8100/v1"
model = "judge"
""",
    "rm": f"""stage = "reward_model"
objective = "pairwise"
scope = "summary"
batch_size = 4
[model]
path = "../../no/hf"
[data]
files = ["../../no/pairs.jsonl"]
max_tokens = 64
{TRAINED}""",
    "sft": f"""stage = "sft"
num_epochs = 1
batch_size = 4
chat_template = "../template.jinja"
[model]
path = "../../no/hf"
[data]
files = ["../rows.jsonl"]
max_tokens = 64
{TRAINED}""",
    "rl": f"""stage = "grpo"
num_steps = 4
[model]
path = "../../no/hf"
[[questions]]{TASK}
[rollout]
num_prompts = 4
[objective]
group_size = 2
ratio = "token"
reduction = "token_mean"
clip_low = 0.2
clip_high = 0.2
kl_coef = 0.0
kl_estimator = "k3"
std = "population"
constant_groups = "drop"
truncated = "mask"
mtp = "off"
expert_bias = "frozen"
{ASKS}{TRAINED}""",
    "eval": f"""stage = "evaluate"
[model]
path = "../../no/hf"
{ASKS}""",
}
PIPELINE = """
[[stages]]
name = "base"
config = "stages/base.toml"

[[stages]]
name = "pairs"
config = "stages/pairs.toml"
start = "base"

[[stages]]
name = "rm"
config = "stages/rm.toml"
start = "base"
reads = { "data.files" = ["pairs/pairs.jsonl"] }

[[stages]]
name = "sft"
config = "stages/sft.toml"
start = "base"

[[stages]]
name = "rl"
config = "stages/rl.toml"
start = "sft"
reads = { "rewards.helpful.path" = "rm/hf" }
set = { "rewards.accuracy" = 1.0, "rewards.helpful.kind" = "reward_model", "rewards.helpful.scope" = "summary" }

[[stages]]
name = "eval"
config = "stages/eval.toml"
start = "rl"

[[stages]]
name = "control"
config = "stages/control.toml"
start = "base"
same_seconds_as = "rl"

[[stages]]
name = "other"
config = "stages/eval.toml"
set = { "model.path" = "weights" }
"""


class SmallChain:
    """The chain's files in a folder, and what ran."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.ran: list[str] = []
        self.made: Callable[[Planned, str], str] = lambda plan, content: content
        """Stage, and a digest of all it depends on -> what its outputs hold."""
        self.seconds = 12.3
        monkeypatch.setattr(chains, "_run_stage", self._run_stage)
        monkeypatch.setattr(
            chains, "look_at_chain",
            lambda pipeline, *_: [SimpleNamespace(refuse_absent=lambda: None) for _ in pipeline.stages],
        )  # fmt: skip
        monkeypatch.setattr("r1mega.runtime.provenance.part", lambda seed: {"seed": seed})  # asks git
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.chdir(ROOT)

    def write(self) -> None:
        (self.folder / "stages").mkdir()
        for name, text in CONFIGS.items():
            (self.folder / f"stages/{name}.toml").write_text(text)
        (self.folder / "chain.toml").write_text(PIPELINE)
        (self.folder / "model.json").write_text((ROOT / "configs/tiny/deepseek_v3.json").read_text())
        (self.folder / "template.jinja").write_text("{{ messages }}")
        (self.folder / "rows.jsonl").write_text('{"messages": []}\n')
        (self.folder / "cluster.toml").write_text((ROOT / "configs/cluster/laptop.toml").read_text())
        write_weights(self.folder / "weights", "other")

    def chain(self, *overrides: str, asked: Selection = ALL) -> PipelineRun:
        pipeline = load_pipeline(self.folder / "chain.toml")
        return PipelineRun(pipeline, str(self.folder / "cluster.toml"), self.run_dir, overrides, asked)

    def run(self, *overrides: str, asked: Selection = ALL) -> list[str]:
        """The stages that ran."""
        self.ran.clear()
        chains.run_chain(self.chain(*overrides, asked=asked), resume=True)
        return list(self.ran)

    def _run_stage(self, plan: Planned, chain: PipelineRun, starts: object) -> tuple[int, None]:
        self.ran.append(plan.node.name)
        folder = chain.run_dir / plan.node.name
        directory = RunDir(folder, plan.recipe, plan.machine, resume=True)
        of = directory.lineage
        content = digest_of(of.start, of.recipe, plan.recipe.model_dump().get("num_steps"))
        for name in plan.recipe.leaves():
            if name == "hf":
                write_weights(folder / "hf", self.made(plan, content))
            else:
                files.write_jsonl(folder / name, [{"row": self.made(plan, content)}])
        if plan.recipe.trains:
            (folder / "checkpoints/step_4").mkdir(exist_ok=True)
            (folder / "trained_on.jsonl").write_text('{"question": "1 + 1"}\n')
        (folder / "metrics.jsonl").write_text('{"step": 4}\n')
        files.write_json(folder / "summary.json", {"stage": plan.recipe.stage, "seconds": self.seconds})
        directory.close()
        return 0, None


def write_weights(folder: Path, content: str) -> None:
    """A folder that passes for a reward model's, and is asked for no more than its config, of these weights."""
    files.make_folder(folder)
    published = json.loads((ROOT / "configs/tiny/qwen2.json").read_text())
    score_head = {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps({**published, **score_head}))
    (folder / "model.safetensors").write_text(content)
    (folder / "tokenizer_config.json").write_text("{}")
