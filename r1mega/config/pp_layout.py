"""What each stage of a trainer's pipeline holds, written in megatron-core's letters.

E is the embedding, t a layer, m a multi-token-prediction layer, L the output head; `|` stands between stages, `*3`
repeats what is before it, a letter or a group in parentheses: "Ettt|(tt|)*29m|L" is DeepSeek-V3 on 16 ranks of two
chunks each. A stage may be empty.
"""

import re
from collections.abc import Sequence

MOST = 10_000
"""Letters and separators of a whole layout."""

_GROUP, _LETTER = re.compile(r"\(([^()]*)\)\*(\d+)"), re.compile(r"([EtmL])\*(\d+)")


def expand(text: str) -> list[str]:
    """Each stage's letters, in the order in which tokens pass the stages.

    Raises:
        ValueError: something that is no letter, separator or repetition, or more of them than any model has.
    """
    plain = re.sub(r"[\s,]", "", text)
    for repeated in (_GROUP, _LETTER):
        if sum(len(m[1]) * int(m[2][:9]) for m in repeated.finditer(plain)) > MOST:
            raise ValueError(f"makes more than {MOST:,} letters; write how often a group or letter stands there")
        plain = repeated.sub(lambda m: m[1] * int(m[2]), plain)
    if wrong := re.sub(r"[EtmL|]", "", plain):
        raise ValueError(f"{wrong[0]!r} is none of E (embedding), t (layer), m (MTP layer), L (head), |, (...)*n, *n")
    return plain.split("|")


def faults(stages: Sequence[str], num_ranks: int, num_chunks: int) -> list[str]:
    """What is wrong with stages, whatever the model.

    Args:
        stages: their letters.
        num_ranks, num_chunks: pipeline ranks, and chunks of each; stage i is chunk i // num_ranks of rank
            i % num_ranks.
    """
    if len(stages) != num_ranks * num_chunks:
        return [f"{len(stages)} stages, but pp {num_ranks} x vpp {num_chunks} makes {num_ranks * num_chunks}"]
    letters = "".join(stages)
    found: list[str] = []
    if letters.count("E") != 1 or not stages[0].startswith("E"):
        found.append("E, the embedding, must stand once, and first")
    if letters.count("L") != 1 or not stages[-1].endswith("L"):
        found.append("L, the head, must stand once, and last")
    if "m" in letters:
        found += _mtp_faults(stages, num_ranks, num_chunks)
    return found


def _mtp_faults(stages: Sequence[str], num_ranks: int, num_chunks: int) -> list[str]:
    letters, with_mtp = "".join(stages), [i for i, stage in enumerate(stages) if "m" in stage]
    found: list[str] = []
    if "t" in letters[letters.index("m") :]:
        found.append("t after m: the MTP layers follow every other layer")
    if len(with_mtp) > 1:
        found.append("m in several stages: the MTP layers stand together")
    if any(i // num_ranks < num_chunks - 1 for i in with_mtp):
        found.append("m outside its rank's last chunk, which Megatron has no schedule for")
    if num_ranks > 1 and any(i % num_ranks == 0 for i in with_mtp):
        found.append("m on the first pipeline rank, which has the embedding already: Megatron would train it twice")
    return found
