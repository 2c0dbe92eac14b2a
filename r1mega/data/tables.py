"""Rows of parquet files and of datasets by their names, for whatever is read from them.

pyarrow and datasets take seconds to import and are, where they are met, by the function that needs them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r1mega.errors import DataError


@contextlib.contextmanager
def parquet_file(file: Path, what: str) -> Iterator[Any]:
    """A file as pyarrow's ParquetFile.

    Args:
        what: it is read for, for messages: "conversations".

    Raises:
        DataError: it is not there, cannot be read, or is of another kind.
    """
    from pyarrow import parquet

    if not file.is_file():
        raise DataError(f"cannot read {what} from {file}: no such file")
    try:
        table = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors of a file that is none are ValueErrors
        raise DataError(f"cannot read {what} from {file}: {error}") from error
    with table:
        yield table


def load_dataset(name: str, config: str, split: str, setting: str, otherwise: str) -> Any:
    """A split of what `datasets.load_dataset` knows by a name: on the hub, in its cache, or a folder.

    Args:
        config: which config of it; "": it has one, or names its default.
        setting: that says the config, for messages: "dataset_config".
        otherwise: what may be given instead of a name, for messages: "data.files".

    Raises:
        DataError: there is no such dataset, config or split, or it cannot be had here.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises almost anything: no network, no such name, no such split
        of = ", ".join([f"config {config!r}"] * bool(config) + [f"split {split!r}"])
        told = f"dataset {name!r}, {of}: {type(error).__name__}: {error}".rstrip(".")
        cause = f": {error.__cause__}".rstrip(".") if error.__cause__ is not None else ""
        if isinstance(error, ConnectionError | DatasetNotFoundError):
            cause += (
                ". Nodes without a network read what was loaded once into the cache that HF_HOME names, a folder of "
                f"files, or {otherwise}"
            )
        elif "onfig" in str(error) and (names := _other_configs(name, config)):
            told, cause = told.split("\n")[0].rstrip("."), f". Set {setting} to one of {names}"
        raise DataError(told + cause) from error


def _other_configs(name: str, config: str) -> str:
    """The configs of the dataset, where the one that was asked for is none of them or is not named."""
    import datasets

    try:
        names = datasets.get_dataset_config_names(name)
    except Exception:  # what kept it from being loaded, which is said
        return ""
    return ", ".join(map(repr, names)) if names and config not in names else ""


def fetched(rows: Iterable[Any], where: str, what: str) -> Iterator[Any]:
    """The rows of a library that may raise anything where a value cannot be decoded. Raises DataError."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"cannot read {what} from {where}: {type(error).__name__}: {error}") from error
        yield row
