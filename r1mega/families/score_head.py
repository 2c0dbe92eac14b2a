"""Models that give a text one number instead of the next token's logits: reward models, in any family.

Their form is transformers' `XForSequenceClassification` with one label: the family's trunk, and `score.weight`
[1, hidden] on the hidden state of a text's last token, without a bias. An output head, its copies and MTP layers they
have not. transformers finds the last token as the last one that is not `pad_token_id`, whatever the attention mask
says; so that it reads the token that is read here, padding must not be a token with which texts end.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.spec import ModelSpec

LANGUAGE, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
"""How names of transformers' classes end."""
LABELS: Mapping[str, Any] = {
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    # What vLLM asks: without it a served score goes through a sigmoid.
    "problem_type": "regression",
}
"""What a config.json says of one label whose logit is the score."""


def with_score_head(spec: ModelSpec) -> ModelSpec:
    """The model with a score head in the place of its output head and MTP layers; one that has it stays.

    Its padding is that of the config where no text can end with it; otherwise bos, or the last id that is no end.
    """
    architecture = _architecture(spec.hf).removesuffix(CLASSIFIER).removesuffix(LANGUAGE) + CLASSIFIER
    pad = _padding(spec)
    hf = {name: value for name, value in spec.hf.items() if name != "num_labels"}
    hf |= {"architectures": [architecture], **LABELS, "pad_token_id": pad, "tie_word_embeddings": False}
    if "num_nextn_predict_layers" in hf:
        hf["num_nextn_predict_layers"] = 0
    return replace(spec, head="score", tied=False, num_mtp_layers=0, pad=pad, hf=hf)


def read_with_head(hf: Mapping[str, Any], read: Callable[[Mapping[str, Any]], ModelSpec]) -> ModelSpec:
    """The model of a config.json, whichever of the two heads it states.

    Args:
        read: the family's reader, of language models.

    Raises:
        ConfigError: as `read`; several labels; or padding with which texts end.
    """
    architecture = _architecture(hf)
    if not architecture.endswith(CLASSIFIER):
        return read(hf)
    labels = hf.get("id2label")
    # In the order in which transformers asks; where nothing is said, it takes 2.
    number = len(labels) if isinstance(labels, Mapping) else hf.get("num_labels", 2)
    if number != 1 or type(number) is not int:
        raise ConfigError(
            f"architectures = [{architecture!r}] with {number} labels (id2label, num_labels): a model of scores has "
            "one label, whose logit is the score; others are not implemented"
        )
    # transformers makes no MTP layers of such a model, whatever their number in the file.
    trunk = {**hf, "architectures": [architecture.removesuffix(CLASSIFIER) + LANGUAGE], "tie_word_embeddings": False}
    spec = read(trunk | ({"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in hf else {}))
    if hf.get("pad_token_id") in spec.ends:
        raise ConfigError(
            f"pad_token_id = {hf['pad_token_id']} is an end token (eos_token_id = {hf.get('eos_token_id')!r}): "
            "transformers reads a score at the last token that is no padding, so before the end, and this system at "
            "the end; make it an id that ends no text"
        )
    return with_score_head(spec)


def _architecture(hf: Mapping[str, Any]) -> str:
    found = hf.get("architectures")
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str) else ""


def _padding(spec: ModelSpec) -> int:
    for stated in (spec.hf.get("pad_token_id"), spec.bos):
        if stated is not None and stated not in spec.ends:
            return stated
    return max(set(range(spec.vocab_size - len(spec.ends) - 1, spec.vocab_size)) - set(spec.ends))
