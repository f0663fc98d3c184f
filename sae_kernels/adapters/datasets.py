"""Texts of a Hugging Face dataset, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import AdapterError, unknown
from ._checks import need
from .streaming import Text


def dataset_texts(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str = "text",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Iterator[Text]:
    """The texts of a hub dataset, or of a local folder of .jsonl, .parquet, .csv or .txt files, in its order.

    Raises:
        AdapterError: the package `datasets` is missing, or there is no such dataset, configuration or split (says what
            it found wrong), or a row's `column` is no text. UnknownNameError: no such column; names the nearest.
    """
    datasets = need("datasets", "datasets")
    options: dict[str, Any] = {"split": split, "streaming": True, "revision": revision}
    if local_files_only and not Path(dataset).exists():
        options["download_config"] = datasets.DownloadConfig(local_files_only=True)
    try:
        rows = iter(datasets.load_dataset(dataset, config, **options))
        first = next(rows, None)
    except (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise AdapterError(f"dataset {dataset!r} can't be opened: {error}") from error
    if first is None:
        raise AdapterError(f"dataset {dataset!r}, split {split!r}: no rows")
    if column not in first:
        raise unknown(f"column of dataset {dataset!r}", column, first)
    number, row = 0, first
    while row is not None:
        if not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise AdapterError(f"dataset {dataset!r}, row {number}: column {column!r} is a {kind}, expected text")
        yield f"{dataset}:{number}", row[column]
        number, row = number + 1, next(rows, None)
