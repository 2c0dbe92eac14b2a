"""Whether a folder that is there holds the weights and the tokenizer that a stage starts from: headers, no data."""

from pathlib import Path

from r1mega.errors import ConfigError, WeightMappingError
from r1mega.families.spec import ModelSpec
from r1mega.formats.hf_files import read_files
from r1mega.formats.hf_headers import HFHeaders
from r1mega.formats.manifest import read_model_fields
from r1mega.preflight import verdicts
from r1mega.recipe.recipe import Recipe

OTHER_FORMS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
"""Files of weights that are not read."""


def missing_tokenizer(recipe: Recipe, folder: Path) -> list[str]:
    """Files of the tokenizer that a stage needs and `folder` lacks."""
    return [name for name in recipe.tokenizer_files() if not (folder / name).is_file()]


def check_weights(recipe: Recipe, spec: ModelSpec) -> None:
    """Refuse a folder that is there and cannot be started from.

    Args:
        spec: the model that the folder's config.json describes.

    Raises:
        ConfigError: no weights, no tokenizer.
        WeightMappingError: tensors that are missing, torn, or of other shapes than the model's; all of them.
        CheckpointError: a Megatron checkpoint that is torn.
    """
    folder = recipe.begins_with.path
    if folder is None or not folder.exists():
        return
    absent = missing_tokenizer(recipe, folder)
    if (folder / ".metadata").is_file():
        read_model_fields(folder)
    elif not any(folder.glob("*.safetensors")):
        absent.insert(0, "*.safetensors (the weights)")
    others = [f.name for kind in OTHER_FORMS for f in sorted(folder.glob(kind))]
    if absent and others and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path: {folder} has its weights as {others[0]}, and no *.safetensors: other forms are not read; "
            "take the model's safetensors files, or write them with transformers' save_pretrained"
        )
    if absent:
        raise ConfigError(
            f"model.path: {folder} has config.json and no {', no '.join(absent)}: a download that has only begun, or "
            f"was made without them; `hf download OWNER/{folder.name} --local-dir {folder}` completes it"
        )
    if (folder / ".metadata").is_file():
        return
    key = verdicts.key("weights", marks(folder), not recipe.trains)
    if verdicts.known(key):
        return
    if not recipe.trains:  # the engine alone reads it, which may do with less than the trainer
        if faults := read_files(folder)[1]:
            raise WeightMappingError("\n  ".join([f"{folder}: {len(faults)} fault(s) of its index", *faults]))
    else:
        headers = HFHeaders(folder, spec)
        if headers.left_out:  # their data is looked at, which takes torch
            from r1mega.formats.hf_folder import HFFolder

            HFFolder(folder, spec)
        headers.refuse_faults()
    verdicts.keep(key, f"weights of {folder}")


def check_served(setting: str, folder: Path) -> None:
    """Refuse a folder that is there and that our own server could not serve, beside the stage's own model.

    Raises:
        ConfigError: no weights, no tokenizer.
        WeightMappingError: what its index lists and lacks.
    """
    needed = ("config.json", "tokenizer_config.json", "tokenizer.json")
    absent = [name for name in needed if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        absent.append("*.safetensors (the weights)")
    if absent:
        raise ConfigError(f"{setting}: {folder} has no {', no '.join(absent)}: name a whole Hugging Face folder")
    if faults := read_files(folder)[1]:
        raise WeightMappingError("\n  ".join([f"{setting}: {folder}: {len(faults)} fault(s) of its index", *faults]))


def marks(folder: Path) -> list[tuple[str, int, int, int]]:
    """Of each file that says what the weights are: name, size, time, inode. Their data is not looked at here."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return [
        (f.name, s.st_size, s.st_mtime_ns, s.st_ino) for f in files for s in [f.stat() if f.exists() else f.lstat()]
    ]
