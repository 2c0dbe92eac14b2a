"""Reward models (report 2.3.4): helpfulness on pairs of summaries, harmlessness on whole labelled responses.

    rows -> what is read of each answer (data/preferences.py, scope.py) -> tokens (data/preference_text.py)
    -> epochs of batches -> a score at each text's last token -> pairwise or pointwise loss

Every parameter is trained; MTP layers are left out, the expert bias is frozen or not by name. An epoch's last batch
has what is left, so that every pair comes once in each.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.algos.preference import pairwise_loss, pointwise_loss, shares
from r1mega.config.cluster import Cluster
from r1mega.config.inputs import missing
from r1mega.data.chat import text_of
from r1mega.data.epochs import Epochs
from r1mega.data.judged import Judged, JudgedBatches
from r1mega.data.preference_data import LEFT_OUT, Preferences
from r1mega.data.preference_text import reading, refuse_unreadable
from r1mega.data.settings import Objective
from r1mega.data.special_tokens import with_ends, with_padding
from r1mega.data.tokenised import Sides, opened, prepare
from r1mega.data.tokenizer import load_tokenizer
from r1mega.diagnostics.preferences import Quality, of_answers, of_pairs
from r1mega.families.registry import check_tokenizer, read_stage_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import check_lengths
from r1mega.recipe.reward_model import RewardModelTraining
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.stages import tokenizers
from r1mega.stages.records import Records
from r1mega.stages.rows import DataPosition, Validation
from r1mega.stages.run import TrainingRun
from r1mega.stages.taught import LearntDocuments
from r1mega.trainer import mesh as meshes
from r1mega.trainer.forward import LossFn
from r1mega.trainer.policy import Policy
from r1mega.trainer.validation import scores_of
from r1mega.weights.megatron_io import load_weights

LOSSES: Mapping[Objective, LossFn] = {"pairwise": pairwise_loss, "pointwise": pointwise_loss}
SHOWN = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.1%}"}
TOLD = {
    "validation/accuracy": "accuracy {:.1%}",
    "validation/loss": "loss {:.4f}",
    "validation/ece": "calibration error {:.3f}",
    "validation/longer_worse/accuracy": "accuracy where the longer answer is worse {:.1%}",
}


def run(
    config: RewardModelTraining, cluster: Cluster, run_dir: RunDir, *, build: Callable[..., Policy] = Policy.build
) -> None:
    """Train for `num_epochs`, from the run's last checkpoint where there is one. On every rank.

    Args:
        build: makes the policy, as `Policy.build` does.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    mesh = meshes.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec = mesh.from_first(lambda: _prepare(config, run_dir))
    data = _judged(config, run_dir, "train")
    epochs = Epochs(data.lengths, config.batch_size, seed=config.seed)
    batches = JudgedBatches(
        data,
        epochs,
        rank=mesh.data_rank,
        num_ranks=mesh.layout.dp,
        chunk_tokens=config.batch.chunk_tokens,
        balance=config.balance,
    )
    steps, loss = config.num_steps(epochs.steps_per_epoch), LOSSES[config.objective]
    with TrainingRun(config, run_dir, mesh, num_steps=steps, max_seconds=config.max_seconds, shown=SHOWN) as run:
        policy = _policy(config, mesh, spec, build)
        run.begin(
            policy,
            first_weights=lambda: load_weights(policy, _base(config)),
            tokenizer=run_dir.tokenizer,
            carried=[DataPosition(data.store, epochs, run_dir)],
            taught=LearntDocuments(epochs, data.store, run_dir.tokenizer, mesh, run_dir.path / "data" / "train"),
            evaluation=_validation(config, policy, run_dir, run.records),
        )
        for step in run.steps():
            with Stopwatch() as watch:
                documents, tokens = batches.share(step)
                lr = run.learning_rate()
                learned = shares(policy.forward_backward(documents, loss))
                updated = run.update(learned, lr)
            run.after_step(learned | updated | {"tokens": tokens}, watch.seconds)
    run.finish(lambda: _summary(run.summary(), run_dir, data, epochs))


def _prepare(config: RewardModelTraining, run_dir: RunDir) -> ModelSpec:
    """The model; leaves the tokenised data, the tokenizer with the template in which it reads, and the questions."""
    folder = _base(config)
    spec = config.adapted(read_stage_model(config.model, config.head))
    check_lengths(config.data.max_tokens, spec, config.batch, "data.max_tokens")
    tokenizer = load_tokenizer(folder)
    check_tokenizer(spec, tokenizer, folder)
    spec = with_ends(spec, tokenizer)
    tokenizer.chat_template = text_of(tokenizer, config.chat_template, "chat_template")
    refuse_unreadable(tokenizer)
    spec, padding = with_padding(spec, tokenizer, last=int(reading(tokenizer, "a", "b")[-1]))
    sides = Sides(config.data, config.validation, config.seed, missing(config.inputs()))
    resumed = bool(run_dir.saved_steps())
    preferences = Preferences(config.reading, tokenizer)
    prepare(sides, preferences, run_dir.path / "data", run_dir.path / "trained_on.jsonl", resumed=resumed)
    tokenizers.write(folder, run_dir.tokenizer, tokenizer.chat_template, {"pad_token": padding})
    return spec


def _judged(config: RewardModelTraining, run_dir: RunDir, what: Any) -> Judged:
    scale = config.margin_scale if config.margin == "gap" else 0.0
    return Judged(opened(run_dir.path / "data", what), config.objective, scale)


def _validation(config: RewardModelTraining, policy: Policy, run_dir: RunDir, records: Records) -> Validation | None:
    """How good the scores are of pairs, or answers, that are not trained on."""
    if config.validation is None:
        return None
    texts = _judged(config, run_dir, "validation")

    def measure() -> dict[str, Any]:
        found = quality(texts, scores_of(policy, texts, config.batch.chunk_tokens))
        bins = [[of.low, of.high, of.count, of.predicted, of.observed] for of in found.bins]
        return {f"validation/{name}": value for name, value in found.figures.items()} | {"validation/bins": bins}

    return Validation(config.validation.every_steps, measure, policy.mesh, run_dir, records, TOLD)


def quality(texts: Judged, scores: list[list[float]]) -> Quality:
    """What scores of a store's documents, one for each of their texts, come to."""
    tokens = [texts.tokens(i) for i in range(len(scores))]
    if texts.objective == "pairwise":
        return of_pairs([(chosen, rejected) for chosen, rejected in scores], [(a, b) for a, b in tokens])
    return of_answers([score for (score,) in scores], texts.labels, [length for (length,) in tokens])


def _policy(config: RewardModelTraining, mesh: meshes.Mesh, spec: ModelSpec, build: Callable[..., Policy]) -> Policy:
    return build(
        spec,
        mesh,
        config.optimizer,
        config.batch,
        mtp="off",
        mtp_loss_weight=0.0,
        expert_bias_rate=config.expert_bias_rate if config.expert_bias == "update" else 0.0,
        seed=config.seed,
        first="score_head",
    )


def _base(config: RewardModelTraining) -> Path:
    assert config.model.path is not None, "the recipe demands it"
    return config.model.path


def _summary(result: dict[str, Any], run_dir: RunDir, data: Judged, epochs: Epochs) -> dict[str, Any]:
    """`result`, and what is a reward model's own: epochs, what became of the rows, validation."""
    counted = ("rows", *LEFT_OUT, "contradicted", "held_out", "safe", "unsafe", "documents", "tokens")
    about = data.store.about
    validated = [row for row in run_dir.metrics() if row["kind"] == "validation"]
    result |= {
        "epochs": result["steps"] / epochs.steps_per_epoch,
        "data": {name: about[name] for name in counted if name in about},
    }
    if validated:
        result |= {"validation_before": _figures(validated[0]), "validation_after": _figures(validated[-1])}
    return result


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """A validation's, by their names in `Quality.figures`."""
    found = {name.removeprefix("validation/"): x for name, x in row.items() if name.startswith("validation/")}
    return {name: x for name, x in found.items() if name != "bins"}
