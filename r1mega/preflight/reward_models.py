"""Whether the folder of a reward model holds weights and a tokenizer that puts question and answer; headers alone."""

from pathlib import Path

from r1mega.errors import ConfigError, DataError, WeightMappingError
from r1mega.preflight import verdicts
from r1mega.preflight.data import tokenizer_digest
from r1mega.preflight.weights import marks
from r1mega.recipe.recipe import Recipe


def check_reward_models(recipe: Recipe) -> None:
    """Refuse the folder of a reward model that is there and cannot score.

    Raises:
        ConfigError: no weights, no tokenizer, more tokens than the model has, no chat template.
        WeightMappingError: tensors that are missing, torn, or of other shapes than the model's; all of them.
    """
    for setting, folder in recipe.reward_models().items():
        if (folder / "config.json").is_file():  # else the recipe has said so
            _check(setting, folder)


def _check(setting: str, folder: Path) -> None:
    absent = [name for name in ("tokenizer_config.json",) if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        absent.insert(0, "*.safetensors (the weights)")
    if absent:
        raise ConfigError(f"{setting}: {folder} has config.json and no {', no '.join(absent)}: it is not whole")
    key = verdicts.key("reward model", marks(folder), tokenizer_digest(folder))
    if verdicts.known(key):
        return
    from r1mega.data.preference_text import refuse_unreadable
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.families.registry import check_tokenizer
    from r1mega.formats.hf_headers import HFHeaders

    try:
        headers = HFHeaders(folder)
        headers.refuse_faults()
        tokenizer = load_tokenizer(folder)
        check_tokenizer(headers.spec, tokenizer, folder)
        refuse_unreadable(tokenizer)
    except (ConfigError, DataError, WeightMappingError) as error:
        raise type(error)(f"{setting}: {error}") from error
    verdicts.keep(key, f"the reward model in {folder}")
