"""What the recipes of stages have that start from a model; others, which put data together, have none."""

from collections.abc import Sequence

from r1mega.config.model import Model
from r1mega.recipe.recipe import Recipe


class FromModel(Recipe):
    """Settings and laws of a stage that trains a model or asks one."""

    model: Model

    @property
    def begins_with(self) -> Model:
        return self.model

    def faults(self) -> list[str]:
        return _model_faults(self.model)

    def tokenizer_files(self) -> Sequence[str]:
        # The engine reads the fast form alone.
        return ("tokenizer_config.json", "tokenizer.json") if self.samples else ("tokenizer_config.json",)


def _model_faults(model: Model) -> list[str]:
    if model.config is None and model.path is None:
        return ["model: give config (an architecture, as a config.json), path (a Hugging Face folder), or both"]
    faults: list[str] = []
    if model.config is not None and not model.config.is_file():
        faults.append(f"model.config: no file {model.config}")
    if model.path is not None and model.path.exists() and not (model.path / "config.json").is_file():
        faults.append(
            f"model.path: no file {model.path / 'config.json'}: name the folder that has config.json, weights and "
            "tokenizer; one that is being downloaded is not complete yet"
        )
    return faults
