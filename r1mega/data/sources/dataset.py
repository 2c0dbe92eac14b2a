"""Questions of a dataset that `datasets.load_dataset` knows by its name: on the hub, in its cache, or a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from r1mega.config.section import anchor_if_path
from r1mega.data.sources.rows import Row, RowSource
from r1mega.data.sources.source import Located
from r1mega.data.tables import fetched, load_dataset


class Dataset(RowSource):
    """A split of a dataset. The columns that are named alone are read."""

    kind: Literal["dataset"] = "dataset"
    name: Annotated[str, BeforeValidator(anchor_if_path)]
    """As `datasets.load_dataset` takes it; a folder begins with "/" or ".", and then counts from the config's."""
    config: str = ""
    """Which config of it (the hub says subset), where it has several."""
    split: str = "train"

    @property
    def on_the_hub(self) -> bool:
        """Whether it is asked for by its name, and so perhaps not on this machine."""
        return not self.name.startswith("/")

    @property
    def title(self) -> str:
        return f"{self.name} ({', '.join(filter(None, [self.config, self.split]))})"

    @property
    def label(self) -> str:
        return Path(self.name).name

    @property
    def unseen(self) -> str:
        where = "is on the hub or in its cache: not looked at here"
        return f"{self.name!r}, split {self.split!r}, {where}" if self.on_the_hub else ""

    def inputs(self) -> list[tuple[str, Path]]:
        return [] if self.on_the_hub else [("name", Path(self.name))]

    def read(self, seed: int) -> list[Located]:
        """The rows, counted from 1. Raises DataError as `JSONL.read`, and where the dataset cannot be had."""
        dataset = load_dataset(self.name, self.config, self.split, "config", 'kind = "jsonl" or "parquet"')
        return self.located(self._rows(dataset.select_columns(self.columns_of(dataset.column_names))), "row")

    def _rows(self, dataset: Any) -> Iterator[Row]:
        rows = fetched(dataset, self.title, "questions")
        for number, row in enumerate(rows, 1):
            yield f"row {number}", row
