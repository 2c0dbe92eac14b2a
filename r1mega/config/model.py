"""Which model a stage starts from."""

from r1mega.config.section import AnchoredPath, Section


class Model(Section):
    """Which model the stage starts from: its architecture, its weights, or both."""

    config: AnchoredPath | None = None
    """A Hugging Face config.json: the architecture. Without `path`, weights are random. With it, the folder must
    hold the same model, and `r1mega check` answers before the weights are there."""
    path: AnchoredPath | None = None
    """A Hugging Face folder (config.json, weights, tokenizer): start from these weights."""
