"""Rows from JSONL or Parquet files, with the file and line in every complaint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.errors import StropError
from strop.types import Message

Row = dict[str, Any]


def read_rows(path: str | Path, columns: tuple[str, ...] = ()) -> list[Row]:
    """All rows of a .jsonl or .parquet file. Raises StropError naming file, line and what is wrong."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise StropError(f"{path}: no such file")
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
    if not rows:
        raise StropError(f"{path}: holds no rows")
    for number, row in enumerate(rows, 1):
        if missing := [c for c in columns if c not in row]:
            raise StropError(f"{path}:{number}: no column {missing[0]!r}; the row has {', '.join(row)}")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open("rb") as lines:  # by bytes: text mode would also break lines at U+2028 inside a string
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise StropError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
            except UnicodeDecodeError as error:
                raise StropError(f"{path}:{number}: not UTF-8: {error.reason}") from error
            if not isinstance(row, dict):
                raise StropError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
            rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import duckdb

    try:
        relation = duckdb.connect().read_parquet(str(path))
        return [dict(zip(relation.columns, values, strict=True)) for values in relation.fetchall()]
    except duckdb.Error as error:
        raise StropError(f"{path}: unreadable Parquet: {str(error).splitlines()[0]}") from error


def conversation(row: Mapping[str, Any], where: str) -> list[Message]:
    """A row's conversation from `messages` (Tülu, TRL) or `prompt` and `completion` (TRL), text or messages."""
    try:
        if "messages" in row:
            turns = row["messages"]
        elif "prompt" in row and "completion" in row:
            given = zip(("user", "assistant"), (row["prompt"], row["completion"]), strict=True)
            parts = [[{"role": role, "content": part}] if isinstance(part, str) else part for role, part in given]
            turns = [turn for part in parts for turn in part or ()]
        else:
            raise StropError(f"{where}: needs `messages`, or `prompt` and `completion`; it has {', '.join(row)}")
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
    except (TypeError, KeyError) as error:
        raise StropError(f"{where}: every message needs `role` and `content`") from error
    if not any(m.role == "assistant" for m in messages) or not all(isinstance(m.content, str) for m in messages):
        raise StropError(f"{where}: needs an assistant message, and text as content")
    return messages
