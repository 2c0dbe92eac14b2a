"""Every setting of every stage: names, types, ranges, and what the report says of each.

One model per section, one per stage; unknown keys are errors. A stage config is science; where it runs
(ranks, precision, threads) stands in a cluster file (`config.cluster`). Imports pydantic alone.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from r1mega.config.rl import Mismatch, Objective, Rewards, Rollout
from r1mega.config.section import AnchoredPath, Section, anchor_if_path
from r1mega.config.training import Batch, Experts, Optimizer, Save, Wandb

TemplateName = Literal["tiny", "r1_zero"]
"""A name of `r1mega.data.template.TEMPLATES`."""


# ---- sections shared by stages, beside those of training -----------------------------------------------------


class Model(Section):
    """Which model the stage starts from: its architecture, its weights, or both."""

    config: AnchoredPath | None = None
    """A Hugging Face config.json: the architecture. Without `path`, weights are random. With it, the folder must
    hold the same model, and `r1mega check` answers before the weights are there."""
    path: AnchoredPath | None = None
    """A Hugging Face folder (config.json, weights, tokenizer): start from these weights."""


class Task(Section):
    """A family of reasoning-gym questions with its own verifier."""

    name: str
    """Task name, as reasoning-gym spells it; `r1mega.data.tasks.TASKS` lists the supported ones."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task among the questions, relative to the other tasks' weights."""
    params: dict[str, int | float | bool | str] = Field(default={})
    """Parameters of the task's generator, e.g. min_terms = 4."""


class Sampling(Section):
    """How answers are drawn from the engine (`rollout.engine.SamplingParams`, which has the same fields)."""

    temperature: float = Field(default=1.0, ge=0.01)
    """T, no less than the engine takes (0.01). The engine's logprobs and the policy's, old and reference logprobs
    are all of logits / T."""
    max_new_tokens: int = Field(gt=0)
    """Length limit of an answer; one that reaches it is truncated."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest tokens whose probabilities sum to this (report's evaluations: 0.95). GRPO takes 1 alone:
    below it the engine's logprobs are of another distribution than the policy's."""
    stop: tuple[str, ...] = ()
    """Strings of an answer's text that end it as well; such an answer counts as ended, not as truncated. Its text
    ends with the string. Its tokens end with the one that completes it, and in GRPO all of them are learnt: but no
    end token, so that the policy does not learn from these answers to end without the string."""


class Evaluation(Section):
    """Held-out questions, answered by the engine with the current weights."""

    every_steps: int = Field(gt=0)
    """Optimiser steps between evaluations; the first and last weights are always evaluated."""
    num_questions: int = Field(gt=0)
    samples_per_question: int = Field(default=4, gt=0)
    """k: pass@1 is the mean over k answers at `sampling.temperature`."""
    seed: int = 999_999
    """Seed of the held-out questions; none of them is trained on (checked)."""


# ---- pretraining of a tiny base -----------------------------------------------------------------------------


class AnswerStyles(Section):
    """Shares of the ways an answer is written in the pretraining text; they must sum to 1."""

    think: float = Field(ge=0, le=1)
    """Worked steps inside <think>, then <answer>: the format RL asks for."""
    tags: float = Field(ge=0, le=1)
    """Nothing worked: an empty thought in the same tags, then <answer>."""
    steps: float = Field(ge=0, le=1)
    """Worked steps in plain prose, no tags."""
    plain: float = Field(ge=0, le=1)
    """The bare answer in a sentence."""


class PretrainData(Section):
    """Clean text made from tasks: correct answers in several styles, so that RL has something to choose."""

    num_documents: int = Field(gt=0)
    """Documents generated; training passes over them as often as `num_steps` asks."""
    styles: AnswerStyles
    learn: Literal["all", "answers"] = "all"
    """Which tokens are targets. A question's numbers are drawn at random: nothing is to be learnt from predicting
    them, and their gradient is noise."""
    part: int = Field(default=0, ge=0, lt=1000)
    """Which part of the endless text this stage reads; a stage that trains on takes another part."""
    vocab_size: int = Field(default=384, ge=300)
    """Size of the byte-level BPE trained on this text (single digits; special tokens and tags included)."""


class Pretrain(Section):
    """Pretraining of a base model: next-token cross-entropy + MTP loss (DeepSeek-V3 report 2.2)."""

    stage: Literal["pretrain"]
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: Model
    tasks: tuple[Task, ...] = Field(min_length=1)
    data: PretrainData
    batch: Batch
    num_steps: int = Field(gt=0)
    """Optimiser steps; with `max_seconds` also set, whichever comes first ends the stage."""
    documents_per_step: int = Field(gt=0)
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after this much training time (0: no bound). The schedule then follows time, not steps."""
    optimizer: Optimizer
    mtp_loss_weight: float = Field(default=0.3, ge=0)
    """lambda of the V3 report's Eq. 25 (0.3 for most of pretraining, later 0.1)."""
    expert_bias_rate: float = Field(default=0.001, ge=0)
    """gamma: step of the auxiliary-loss-free load balancing bias, after each optimiser step."""
    experts: Experts = Experts()
    save: Save
    wandb: Wandb = Wandb()


# ---- supervised fine-tuning -------------------------------------------------------------------------------------


class Conversations(Section):
    """Conversations: rows with `messages`, each {role, content}, or with `prompt` and `response`; and `system`."""

    files: tuple[AnchoredPath, ...] = ()
    """*.jsonl and *.parquet files, read in this order."""
    dataset: Annotated[str, BeforeValidator(anchor_if_path)] = ""
    """A dataset, beside files or instead: a name that `datasets.load_dataset` knows, on the hub or in its cache, or a
    folder, which begins with "/" or "." and then counts from this file."""
    dataset_config: str = ""
    """Which config of it (the hub says subset), where it has several."""
    split: str = "train"
    """Which split of it."""


class SFTData(Conversations):
    """Conversations to learn from."""

    max_tokens: int = Field(gt=0)
    """Context length (report: 32,768): the longest conversation, and the length of a chunk where
    batch_unit = "chunks"."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What happens to a longer one: the run stops and names it; its first max_tokens tokens are learnt, so that it
    never ends; or it is left out. The summary counts those truncated and dropped."""


class Validation(Conversations):
    """Conversations that are not trained on: of files of their own, or a share of the training data."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training conversations to hold out instead, by a hash of what is asked in them: no conversation
    that begins with a held-out one's question is trained on."""
    every_steps: int = Field(gt=0)
    """Optimiser steps between validations; the first and the last weights are always validated."""


class SFT(Section):
    """Supervised fine-tuning on conversations: cold start (2.3.1), the 800K set (2.3.3), distillation (2.4)."""

    stage: Literal["sft"]
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: Model
    max_positions: int = Field(default=0, ge=0)
    """Raise the model's max_position_embeddings to this, its rotary positions unchanged; 0 leaves it. The report's
    context is longer than the 4,096 positions that Qwen2.5-Math states."""
    chat_template: AnchoredPath | None = None
    """A Jinja file that writes conversations, and goes with the trained model; none: the tokenizer's own."""
    data: SFTData
    validation: Validation | None = None
    num_epochs: int = Field(gt=0)
    """Passes over the data, each in its own order (report: 2 to 3)."""
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps after which the stage ends all the same, and which the schedule then counts to; 0: no bound."""
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after this much training time (0: no bound). The schedule then follows time, not steps."""
    batch_size: int = Field(gt=0)
    """Of an optimiser step, in `batch_unit` (report: 128, for the students 64)."""
    batch_unit: Literal["samples", "chunks"] = "samples"
    """The report does not say which. samples: conversations; at 128 an epoch of the 800K is 6,288 steps. chunks:
    packed chunks of data.max_tokens; at 128 it is about 1,030 steps."""
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """token_mean: over all targets of the batch; sequence_mean: over a conversation's targets, then conversations."""
    mtp: Literal["off", "detached", "joint"] = "joint"
    """off: MTP layers are neither run nor trained; detached: they learn from a detached trunk; joint: their loss
    reaches the trunk, as in pretraining. Without effect where the model has none."""
    mtp_loss_weight: float = Field(default=0.1, ge=0)
    """lambda of the V3 report's Eq. 25 (0.1 late in pretraining)."""
    expert_bias: Literal["frozen", "update"] = "frozen"
    """Whether the router's load-balancing bias moves at each optimiser step."""
    expert_bias_rate: float = Field(default=0.001, ge=0)
    experts: Experts = Experts()
    optimizer: Optimizer
    batch: Batch
    save: Save
    wandb: Wandb = Wandb()


# ---- GRPO ---------------------------------------------------------------------------------------------------


class GRPO(Section):
    """Reinforcement learning with GRPO (report Eq. 1-3; R1-Zero: section 2.2)."""

    stage: Literal["grpo"]
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: Model
    tasks: tuple[Task, ...] = Field(min_length=1)
    questions: AnchoredPath | None = None
    """A JSONL file of training questions (fields task, question, truth) to use instead of made ones. Those of the
    held-out side (one in eight, `r1mega.data.split`) are left out and counted, as in every stage."""
    duplicates: Literal["error", "drop"] = "error"
    """What happens to a question of the file that an earlier line asks: the run stops and lists them, or it is left
    out and counted."""
    max_prompt_tokens: int = Field(default=0, ge=0)
    """Longest prompt, template included; 0: what the model's positions leave beside sampling.max_new_tokens."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a training question with a longer prompt: the run stops and names it, or it is left out and
    counted."""
    num_questions: int = Field(gt=0)
    """Distinct training questions made from the tasks; taken in a shuffled order, again and again."""
    num_steps: int = Field(gt=0)
    """Optimiser steps (one per mini-batch), the counter of the report's schedules."""
    template: TemplateName = "tiny"
    """How a question is put: r1_zero is the report's Table 1 word for word; tiny its short form, for tokenizers that
    `r1mega run` has trained."""
    rollout: Rollout
    sampling: Sampling
    objective: Objective
    rewards: Rewards = Rewards()
    optimizer: Optimizer
    batch: Batch
    mismatch: Mismatch = Mismatch()
    evaluation: Evaluation
    experts: Experts = Experts()
    save: Save
    wandb: Wandb = Wandb()


# ---- evaluation of a finished model -------------------------------------------------------------------------


class Evaluate(Section):
    """Held-out questions answered by a Hugging Face folder; needs the engine alone, no trainer."""

    stage: Literal["evaluate"]
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: Model
    tasks: tuple[Task, ...] = Field(min_length=1)
    template: TemplateName = "tiny"
    """As in GRPO."""
    sampling: Sampling
    evaluation: Evaluation


Stage = Pretrain | SFT | GRPO | Evaluate


# ---- a chain of stages --------------------------------------------------------------------------------------


class Node(Section):
    """One stage of a pipeline."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the stage's run directory inside the pipeline's."""
    config: AnchoredPath
    """The stage config."""
    start: str = ""
    """The earlier stage whose final weights this one starts from; empty: the config says."""
    same_seconds_as: str = ""
    """The earlier stage whose training seconds bound this one's: a control at equal cost."""


class Pipeline(Section):
    """Stages run one after the other, each in a process of its own."""

    stages: tuple[Node, ...] = Field(min_length=1)
