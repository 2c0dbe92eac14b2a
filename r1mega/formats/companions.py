"""What travels with a model's weights, exported or converted: tokenizer, generation config, licences, a card."""

import importlib.metadata
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from r1mega.errors import ConversionError
from r1mega.families.spec import ModelSpec
from r1mega.runtime.files import dump_json

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of these makes a tokenizer."""
# fmt: off
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "tiktoken.model", "spiece.model",
    "sentencepiece.bpe.model", "tokenization_*.py", "chat_template.*", "additional_chat_templates/*.jinja",
)
"""Taken from one folder only: files of two tokenizers make none. With them goes the code that tokenizer_config.json
names in `auto_map`."""
LICENCES = ("license*", "licence*", "notice*", "use_policy*")
OTHERS = ("generation_config.json", "configuration_*.py", "modeling_*.py", *LICENCES)
"""The model's own, whatever tokenizer goes with it; capitals do not count."""
# fmt: on
REBUILT = ("Qwen2Tokenizer", "LlamaTokenizer")
"""Classes whose tokenizers transformers 5 builds anew (`tokenizer_words`)."""
GENERATION = "generation_config.json"
CARD = "README.md"


def find_tokenizer(source: Path, given: Path | None, vocab_size: int) -> Path:
    """The folder whose tokenizer goes with a model: the one that was named, the model's own, or its run's.

    Raises:
        ConversionError: none has a tokenizer, or it is torn, empty or has more tokens than the model.
    """
    run = run_of(source)
    places = [source, *([run / "tokenizer", run / "hf"] if run else [])] if given is None else [given]
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER):
            _check_tokenizer(place, vocab_size)
            return place
    wanted = ", ".join(TOKENIZER[:-1]) + f" or {TOKENIZER[-1]}"
    raise ConversionError(
        f"{given or source}: no tokenizer ({wanted}); name its folder with --tokenizer, or convert without: "
        "--no-tokenizer"
    )


def run_of(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint RUN/checkpoints/step_N lies in; None of any other folder."""
    checkpoints = checkpoint.resolve().parent
    return (
        checkpoints.parent
        if checkpoints.name == "checkpoints" and (checkpoints.parent / "run.json").is_file()
        else None
    )


def origin(source: Path) -> Path:
    """The folder whose licences and generation config are a model's: its own, or its run's export."""
    run = run_of(source)
    return run / "hf" if run is not None and (run / "hf").is_dir() else source


def _check_tokenizer(folder: Path, vocab_size: int) -> None:
    file = next(folder / name for name in TOKENIZER if (folder / name).is_file())
    try:
        if file.name == "tokenizer.model":  # sentencepiece's, which only its own package reads
            num_tokens = vocab_size if file.stat().st_size else 0
        elif file.name == "vocab.json":
            num_tokens = 1 + max(json.loads(file.read_text(encoding="utf-8")).values(), default=-1)
        else:
            from tokenizers import Tokenizer

            num_tokens = 1 + max(
                Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1
            )
    except Exception as e:  # tokenizers raises Exception itself
        raise ConversionError(f"{file}: not a tokenizer that can be read ({e}); fetch it again") from e
    if not num_tokens:
        raise ConversionError(f"{file}: a tokenizer without tokens; fetch it again")
    if num_tokens > vocab_size:
        raise ConversionError(
            f"{file}: its tokens have ids up to {num_tokens - 1}, the model has {vocab_size}: it is another model's; "
            "name the right folder with --tokenizer, or convert without: --no-tokenizer"
        )


def collect(source: Path | None, tokenizer: Path | None) -> dict[str, Path]:
    """The files that travel along, by their place in the folder: a tokenizer's from its folder alone, all else from
    the source's.

    Raises:
        ConversionError: one of them cannot be opened.
    """
    code = [] if tokenizer is None else _code_named(tokenizer / "tokenizer_config.json")
    found = {**_matching(source, OTHERS), **_matching(tokenizer, [*TOKENIZER_FILES, *map(str.lower, code)])}
    for file in found.values():
        try:
            file.open("rb").close()
        except OSError as e:
            raise ConversionError(f"{file}: cannot be read ({e.strerror}); it goes with the model") from e
    return found


def _matching(folder: Path | None, patterns: Sequence[str]) -> dict[str, Path]:
    if folder is None or not folder.is_dir():
        return {}
    inside = {x.split("/")[0] for x in patterns if "/" in x}
    folders = [folder, *(folder / name for name in sorted(inside) if (folder / name).is_dir())]
    files = {p.relative_to(folder).as_posix(): p for f in folders for p in sorted(f.iterdir()) if p.is_file()}
    return {n: p for n, p in files.items() if any(fnmatchcase(n.lower(), x) for x in patterns if _as_deep(n, x))}


def _as_deep(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/")


def _code_named(file: Path) -> list[str]:
    """The Python files that a tokenizer_config.json names in `auto_map`, and those there that they import."""
    try:
        named = json.loads(file.read_text(encoding="utf-8"))["auto_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # none, or not one that names code: who reads the tokenizer says what is wrong with it
    classes = [c for value in named for c in (value if isinstance(value, list) else [value]) if isinstance(c, str)]
    found: list[str] = []
    todo = [c.split(".")[0] for c in classes if "--" not in c and c.count(".") == 1]
    while todo:
        name = f"{todo.pop()}.py"
        if name not in found and (file.parent / name).is_file():
            found.append(name)
            todo += _RELATIVE.findall((file.parent / name).read_text(encoding="utf-8", errors="replace"))
    return found


_RELATIVE = re.compile(r"^\s*(?:from|import)\s+\.(\w+)", re.MULTILINE)
"""A module of the same folder as the one that imports it, as transformers looks for them."""


def copy(found: Mapping[str, Path], out: Path) -> None:
    """Copy what was collected."""
    for name, file in found.items():
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, out / name)


def write_generation_config(spec: ModelSpec, out: Path, *, trained: bool = False) -> None:
    """The model's special tokens, where no generation config came along.

    Args:
        trained: the model is no more its source's: a file that came along gets the ends that this model was given.
    """
    ids = {"bos_token_id": spec.bos, "eos_token_id": spec.eos, "pad_token_id": spec.pad}
    file = out / GENERATION
    if not file.exists():
        dump_json(file, ids)
    elif trained:
        theirs: Any = json.loads(file.read_text(encoding="utf-8"))
        listed = theirs.get("eos_token_id", spec.eos)
        same = set(spec.ends) == set(listed if isinstance(listed, list | tuple) else [listed])
        dump_json(file, {**ids, **theirs} if same else {**theirs, **ids})


def version() -> str:
    """This system's own."""
    try:
        return importlib.metadata.version("r1mega")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def tokenizer_words(folder: Path) -> list[str]:
    """What a card says to those who load a folder's tokenizer with transformers, where that builds another.

    Source: transformers 5, models/auto/tokenization_auto.py: these classes, and this model type whatever class its
    files name, are built around the vocabulary alone.
    """
    if not (folder / "tokenizer.json").is_file():
        return []
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return []  # not a folder that transformers loads a tokenizer from
    unnamed = kind == "qwen3" and named is None
    if not (kind == "qwen2" or unnamed or str(named).removesuffix("Fast") in REBUILT):
        return []
    return [
        "Its tokenizer is what tokenizer.json says: load it with `PreTrainedTokenizerFast.from_pretrained`. "
        "`AutoTokenizer` of transformers 5 may put a pre-tokenizer of its own in its place, and so make other tokens "
        "of the same text.",
        "",
    ]


def write_card(
    out: Path, source: Path | None, *, library: str, title: str, rows: Mapping[str, str], said: Sequence[str]
) -> None:
    """README.md: a table of what the model is, under everything that its source's own card says of the licence.

    Args:
        source: the folder whose card states the licence; None: there is none.
        rows: of the table.
        said: sentences under it.
    """
    licence = licence_lines(source) if source is not None else []
    lines = ["---", f"library_name: {library}", *licence, "---", "", f"# {title}", "", "| | |", "|---|---|"]
    lines += [*(f"| {key} | {value} |" for key, value in rows.items()), "", *tokenizer_words(out), *said]
    if not licence and not _matching(out, LICENCES[:2]):
        lines.append("The source stated no licence.")
    (out / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def licence_lines(folder: Path) -> list[str]:
    """What the front matter of a folder's own card says of the licence: license, license_name, license_link."""
    file = folder / CARD
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    if not lines or lines[0].strip() != "---":
        return []
    found: list[str] = []
    inside = False
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        # What is indented, or an item, goes on with the field above.
        inside = inside if line.startswith((" ", "\t", "-")) else line.startswith("license")
        found += [line] if inside else []
    return []
