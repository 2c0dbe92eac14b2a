"""In which clauses the target language is spoken, where several languages are written in its script.

A clause's evidence for the target against the likeliest other language is a difference of log-probabilities: by
py3langid's model for the languages of one alphabet; for Chinese and Japanese by kana, and by characters that the
Japanese standard lacks. A language is stayed in: changing it between two clauses costs `SWITCH` nats, so that a
clause too short to be told (`Wait`, a name) goes with its neighbours, and what cannot be told at all counts as the
target. The languages of the clauses are those of the most likely path (Viterbi), in one pass.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

from r1mega.rewards.languages.table import SCRIPTS, of_one_script
from r1mega.rewards.languages.words import Clause

SWITCH = 1.0
"""Nats against a change of language from one clause to the next."""
MAX_EVIDENCE = 12.0
"""Nats of one clause."""
FULL_WORDS = 3
"""Different words of a clause whose evidence counts in full; of fewer, in proportion. One word alone is taken for
another language's one time in four."""
_HAN, _CHINESE = 0.125, 3.0
"""Nats for Chinese: of a Chinese character (against one for Japanese, of a kana), and of one that Japanese does not
use: not in JIS X 0208, or one of `_PARTICLES`."""
_PARTICLES = frozenset("是你她很")


def words_of(target: str, clauses: Sequence[Clause]) -> int:
    """How many words are of the language `target`, a key of `table.SCRIPTS`."""
    scripts = SCRIPTS[target]
    found = [clause for clause in clauses if not scripts.isdisjoint(clause.words)]
    num_words = [sum(clause.words.get(script, 0) for script in scripts) for clause in found]
    if target in ("zh", "ja"):
        sign = 1 if target == "zh" else -1
        spoken = path([sign * _chinese(clause) for clause in found])
    else:
        (script,) = scripts
        rivals = of_one_script(script)
        if len(rivals) == 1:
            return sum(num_words)
        # A word said again is no new evidence: `plus is plus is` is as little English as `plus is`.
        texts = [" ".join(dict.fromkeys(clause.texts[script])) for clause in found]
        seen = {text: _evidence(target, rivals, text) for text in set(texts)}
        spoken = path([seen[text] for text in texts])
    kana = [clause.words.get("Kana", 0) if target == "ja" else 0 for clause in found]  # Japanese wherever it stands
    return sum(
        num if is_target else num_kana for num, num_kana, is_target in zip(num_words, kana, spoken, strict=True)
    )


def path(evidence: Sequence[float]) -> list[bool]:
    """Whether the target is spoken, of each clause: the most likely path, which begins in the target.

    Args:
        evidence: nats for the target, of each clause; negative for another language.
    """
    target, other = 0.0, -SWITCH
    stays: list[tuple[bool, bool]] = []
    for nats in evidence:
        stays.append((target >= other - SWITCH, other >= target - SWITCH))
        target, other = (
            max(target, other - SWITCH) + max(-MAX_EVIDENCE, min(nats, MAX_EVIDENCE)),
            max(other, target - SWITCH),
        )
    spoken: list[bool] = []
    is_target = target >= other
    for target_stays, other_stays in reversed(stays):
        spoken.append(is_target)
        is_target = target_stays if is_target else not other_stays
    return spoken[::-1]


def _chinese(clause: Clause) -> float:
    """Nats for Chinese against Japanese."""
    han, kana = "".join(clause.texts.get("Han", ())), sum(map(len, clause.texts.get("Kana", ())))
    not_japanese = len(han) - len(han.encode("shift_jis", "ignore")) // 2 + sum(map(_PARTICLES.__contains__, han))
    return _HAN * len(han) + _CHINESE * not_japanese - kana


def _evidence(target: str, rivals: tuple[str, ...], text: str) -> float:
    """Nats for the target against the likeliest of the rivals, by the model's probabilities."""
    shares: dict[str, float] = dict(_identifier(rivals).rank(text))
    other = max(share for language, share in shares.items() if language != target)
    nats = math.log(max(shares[target], 1e-9)) - math.log(max(other, 1e-9))
    return nats * min(1.0, (text.count(" ") + 1) / FULL_WORDS)


@functools.cache
def _identifier(languages: tuple[str, ...]) -> Any:
    """The model, which knows these languages alone."""
    from r1mega.rewards.languages.model import MODEL

    identifier = copy.copy(MODEL)
    identifier.set_languages(languages)
    return identifier
