"""Which figures there are: their curves, axes, and captions. `figures.py` draws them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One metric of one kind of row, and how it is called in the legend."""

    key: str
    label: str
    kind: str = "train"
    bars: bool = False
    """Whether KEY_low and KEY_high are the ends of its 95% interval, clustered by question; drawn as bars."""
    dashed: bool = False
    """Measured so seldom that the line between two points says nothing."""


@dataclass(frozen=True)
class Figure:
    """Curves that share a y axis; x is the optimiser step."""

    file: str
    title: str
    y_label: str
    curves: tuple[Curve, ...]
    caption: str
    """What to look for, in a sentence."""
    log: bool = False
    share: bool = False
    """The y axis is a share: fixed to [0, 1]."""


FIGURES = (
    Figure(
        "pass_at_1",
        "Held-out answers",
        "share of answers (bars: 95%, clustered by question)",
        (
            Curve("eval/strict", "right, in the format (pass@1)", "eval", bars=True),
            Curve("eval/lenient", "right, in any format", "eval", bars=True),
            Curve("eval/format", "in the format", "eval"),
            Curve("eval/works", "with a thought or worked steps", "eval"),
            Curve("eval/strict", "right, in the format, greedy", "eval_greedy", bars=True, dashed=True),
        ),
        "The report's Figure 2: pass@1 should rise past its bars; where the format rises and the answers in any "
        "format do not, only the dress was learnt.",
        share=True,
    ),
    Figure(
        "styles",
        "How held-out questions are answered",
        "share of answers",
        (
            Curve("eval/share/think", "a thought in tags", "eval"),
            Curve("eval/share/tags", "tags around no thought", "eval"),
            Curve("eval/share/steps", "worked steps in prose", "eval"),
            Curve("eval/share/plain", "the bare answer", "eval"),
            Curve("eval/share/other", "anything else", "eval"),
        ),
        "Which way of answering wins, and whether one that was never rewarded by itself (thoughts, steps) does.",
        share=True,
    ),
    Figure(
        "response_length",
        "Response length",
        "tokens per answer (mean)",
        (
            Curve("response_length/mean", "training questions"),
            Curve("eval/mean_tokens", "held-out questions", "eval"),
        ),
        "The report's Figure 3: length grows where working longer pays; growth with no gain in pass@1, or up to the "
        "token limit, is a warning.",
    ),
    Figure(
        "repetition",
        "Repetition",
        "share of an answer's 4-grams (mean)",
        (Curve("repetition/mean", "training questions"),),
        "What stood in the same answer before: a steady level is the language, growth a policy that begins to loop.",
        share=True,
    ),
    Figure(
        "reward",
        "Reward of the sampled answers",
        "mean reward",
        (
            Curve("reward/total", "total"),
            Curve("reward/accuracy", "accuracy"),
            Curve("reward/format", "format"),
            Curve("reward/language", "language"),
        ),
        "Format is learnt first and fast; accuracy should go on rising after it, and a fall means that training came "
        "apart.",
    ),
    Figure(
        "waste",
        "Answers that teach nothing",
        "share of groups or answers",
        (
            Curve("groups/constant", "groups with one reward throughout"),
            Curve("response_length/truncated", "answers cut at the token limit"),
            Curve("reward/unscored", "answers without a verdict"),
            Curve("eval/unscored", "held-out answers without a verdict", "eval"),
        ),
        "Groups whose answers all score alike have no advantage: near 1 the questions are too easy or too hard; "
        "answers without a verdict should stay at 0.",
        share=True,
    ),
    Figure(
        "verdicts",
        "Answers that were not judged as others",
        "answers of a rollout",
        (
            Curve("rollout/failed", "failed, through no fault of the answer"),
            Curve("rollout/unscorable", "whose question cannot be judged, or masked"),
            Curve("rollout/beyond_limits", "judgements of 0: too much time or memory, or the end of a worker"),
        ),
        "Failed ones are our side's (a sandbox, an endpoint) and past rollout.max_failed the run stops; samples/ has "
        "their reasons. Judgements past the limits on every answer are a reward that is too slow, not a policy.",
    ),
    Figure(
        "judging",
        "What endpoints were asked for",
        "of a rollout",
        (
            Curve("judging/asked", "questions to those that judge or score"),
            Curve("judging/cached", "answered out of what was said before"),
            Curve("judging/unreadable", "replies in which no verdict could be read"),
            Curve("judging/tried_again", "requests tried again"),
            Curve("judging/given_up", "requests given up"),
        ),
        "Replies that cannot be read are asked for again and then leave their answers unscorable; requests given up "
        "leave them failed. Both should stay near 0: what is left is what the judge can read, no fair share of all.",
    ),
    Figure(
        "signal_lost",
        "Signal that false negatives would cost",
        "share of the advantage between right and wrong",
        (
            Curve("signal_lost/assumed", "at rollout.false_negatives"),
            Curve("signal_lost/published", "at the rate published for the verifier"),
        ),
        "What is lost of the push towards right answers where some of them are taken for wrong; it grows as "
        "questions get easy. Where it nears 1, what still looks like a difference may be the verifier's faults.",
        share=True,
    ),
    Figure(
        "kl",
        "Distance from the reference",
        "KL(policy || reference), nats per token",
        (Curve("kl/mean", "KL"),),
        "Slow growth is learning, a lasting jump is a policy running away; it begins anew where the reference is "
        "refreshed.",
        log=True,
    ),
    Figure(
        "clip",
        "Clipped tokens",
        "share of tokens",
        (Curve("clip_fraction", "clip fraction"),),
        "0 on the first mini-batch of a rollout, a little on the later ones; several per cent say that the steps are "
        "too large.",
    ),
    Figure(
        "mismatch",
        "Engine against trainer",
        "|logp(vLLM) − logp(Megatron)|, nats",
        (
            Curve("mismatch/max", "largest of any token"),
            Curve("mismatch/max_untied", "largest without a tie of the router"),
            Curve("mismatch/p999", "99.9th percentile of tokens"),
            Curve("mismatch/mean", "mean over tokens"),
        ),
        "Flat at the rounding of the number format: a rise means that the two halves no longer compute the same. "
        "Past mismatch.max_abs (both in fp32) or mismatch.mean (either in bf16 or fp8) the run stops.",
        log=True,
    ),
    Figure(
        "mismatch_kl",
        "Engine against trainer, where either rounds below fp32",
        "nats per token",
        (
            Curve("mismatch/kl", "KL(engine || trainer)"),
            Curve("mismatch/kl_change", "its line's rise over mismatch.window rollouts"),
        ),
        "Flat, and past mismatch.kl the run stops; a rise comes before training comes apart.",
    ),
    Figure(
        "loss",
        "Loss",
        "loss (of text: nats per token)",
        (
            Curve("loss", "loss"),
            Curve("validation/loss", "validation loss", "validation"),
            Curve("mtp_loss", "MTP loss"),
        ),
        "Of text (pretraining, SFT, MTP) it should fall and level off; a validation loss that rises again says "
        "that the text is being learnt by heart; of GRPO it is the negated objective, whose level "
        "says little and whose jumps say much.",
    ),
    Figure(
        "preference_accuracy",
        "Judged answers told right",
        "share of pairs, or of answers",
        (
            Curve("accuracy", "training batches"),
            Curve("validation/accuracy", "held out", "validation"),
        ),
        "A reward model's: 0.5 is a coin. Training batches are met once, so that both should rise together; where "
        "those alone go on rising, answers are being learnt by heart.",
        share=True,
    ),
    Figure(
        "length_bias",
        "Where the longer answer is the worse one",
        "share of pairs told right",
        (
            Curve("validation/longer_worse/accuracy", "held out, the longer one is worse", "validation"),
            Curve("validation/longer_better/accuracy", "held out, the longer one is better", "validation"),
            Curve("accuracy/longer_worse", "training batches, the longer one is worse"),
            Curve("accuracy/longer_better", "training batches, the longer one is better"),
        ),
        "A reward model that takes length for quality is right where the longer answer is better and wrong where it "
        "is worse: the two should lie together.",
        share=True,
    ),
    Figure(
        "score_margin",
        "Scores of better answers over those of worse",
        "difference of scores, logits (mean)",
        (
            Curve("margin/mean", "training batches"),
            Curve("validation/margin", "held out", "validation"),
        ),
        "Grows with accuracy; growth long after accuracy has settled is certainty alone, and shows as an error of "
        "calibration.",
    ),
    Figure(
        "calibration",
        "Calibration",
        "error of the probability",
        (
            Curve("validation/ece", "expected calibration error, held out", "validation"),
            Curve("validation/brier", "Brier score, held out", "validation"),
            Curve("brier", "Brier score, training batches"),
        ),
        "The calibration error is how far shares are from the probabilities that the model gives (the reliability "
        "diagram has both); the Brier score, 0.25 of a coin, counts certainty as well.",
    ),
    Figure(
        "grad_norm",
        "Gradient norm before clipping",
        "global L2 norm",
        (Curve("grad_norm", "gradient norm"),),
        "Settles after the first steps; growing spikes come before a collapse, and all of it above "
        "optimizer.clip_grad means that every step is clipped.",
    ),
    Figure(
        "entropy",
        "Entropy of the policy",
        "nats per token",
        (Curve("entropy", "entropy"),),
        "Falls as the policy makes up its mind; near 0 it samples one answer only and has nothing left to compare.",
    ),
    Figure(
        "expert_balance",
        "Balance of the experts",
        "load over the even load",
        (
            Curve("experts/max_violation/worst", "largest load − 1, worst layer"),
            Curve("experts/max_violation/mean", "largest load − 1, mean over layers"),
            Curve("experts/least_load/mean", "smallest load, mean over layers"),
            Curve("experts/least_load/worst", "smallest load, worst layer"),
        ),
        "0 above and 1 below would be perfect balance. The bias keeps it while it moves; where it is frozen, as in "
        "RL, a steady drift says that the text has moved away from what the routers were balanced on.",
    ),
    Figure(
        "router_entropy",
        "Entropy of the routers",
        "nats per token",
        (
            Curve("experts/entropy/mean", "mean over layers"),
            Curve("experts/entropy/worst", "smallest of any layer"),
        ),
        "How undecided a router is about a token; ln(experts) at most, and near 0 it sends every token of a kind to "
        "the same expert.",
    ),
    Figure(
        "expert_bias",
        "Expert bias",
        "largest |bias| of a layer's experts",
        (
            Curve("experts/bias/worst", "largest of any layer"),
            Curve("experts/bias/mean", "mean over layers"),
        ),
        "Grows while balancing needs it and settles; flat from the start where objective.expert_bias is frozen.",
    ),
)
EXPERT_LOAD = "expert_load"
"""File name of the heat map of experts.jsonl."""
PAIR_GAPS, PAIR_LENGTHS = "pair_gaps", "pair_lengths"
"""File names of the figures of judged.jsonl."""
OUTCOMES = "outcomes"
"""File name of what became of a rejection stage's answers."""
SET_DOMAINS, SET_LENGTHS = "set_domains", "set_lengths"
"""File names of the figures of a set that was put together."""
RELIABILITY = "reliability"
"""File name of a reward model's reliability diagram."""
HACKING = "hacking"
"""File name of trained rewards beside their truths."""
MODEL_TABLE = "model_table"
"""File name of a pipeline's figure: the scores of its models."""
COMPARISON = "rl_and_control"
"""File name of a pipeline's figure: RL beside its control."""
CAPTIONS = {figure.file: figure.caption for figure in FIGURES} | {
    EXPERT_LOAD: "One line an expert, layer above layer: white is the even load, red more, blue less. Patches come "
    "and go with the text; a line that stays dark blue is an expert that nothing reaches, and red lines among blue "
    "ones are a router that has collapsed.",
    PAIR_GAPS: "How far apart the judge puts the two answers of a pair, by the mean of its votes: those kept, those "
    "of too small a gap, and those left out to balance lengths. Nearly all at 0 is a judge that cannot tell them "
    "apart, or goes by their order.",
    PAIR_LENGTHS: "Dashed, before balancing: chosen to the right of rejected is a judge, or a policy, that favours "
    "long answers. Kept ones should lie on each other, or the reward model learns length.",
    OUTCOMES: "What rejection sampling keeps, and why it does not keep the rest: each answer has the first reason "
    "that is true of it. Much that was wrong is a model that is too weak for its questions, or a form that the "
    "verifier does not read; much that a filter took is a threshold to look at in decisions.jsonl.",
    SET_DOMAINS: "Which domains the set's rows are of, beside the report's 800K: a share far from the report's is "
    "meant, or a source gave less than it should.",
    SET_LENGTHS: "How long answers are, by domain. A domain cut off sharply on the right met a length limit; two "
    "humps in one are answers with and without a chain of thought.",
    RELIABILITY: "Of held-out pairs, or answers, that get a probability, the share that is as the model says: on "
    "the dashed line it is as sure as it is right, below it too sure.",
    HACKING: "Trained rewards should pull their truths along. A reward that goes on rising while a truth turns and "
    "falls is being hacked, most likely from the truth's peak on; a vertical line is where the run was warned.",
    MODEL_TABLE: "The scores of the pipeline's models, in the order of its table, with 95% intervals clustered by "
    "question. Bars that overlap may still differ on the same questions: the relations below the table are paired.",
    COMPARISON: "RL against more of the pretraining it started from, at equal training time: what lies between the "
    "two ends, bars included, is what RL itself brought.",
}
"""What to look for in a figure, by its file's name without the suffix."""
