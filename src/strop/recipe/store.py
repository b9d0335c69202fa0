"""A content-addressed store: what a stage left lies under the hash of everything that went into it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import StropError


def home() -> Path:
    """`$STROP_HOME`, else ~/.cache/strop."""
    return Path(os.environ.get("STROP_HOME") or "~/.cache/strop").expanduser()


@dataclass(frozen=True)
class Artifact:
    """One stage's or evaluation's place in the store. It is done when `done.json` stands there."""

    kind: str
    key: str

    @property
    def path(self) -> Path:
        return home() / "store" / f"{self.kind}-{self.key}"

    @property
    def done(self) -> bool:
        return (self.path / "done.json").exists()

    def record(self) -> dict[str, Any]:
        """What was written when the work was finished."""
        return json.loads((self.path / "done.json").read_text())

    def finish(self, record: dict[str, Any]) -> None:
        """Mark as done: a kill leaves either the whole record or none."""
        write_atomically(self.path / "done.json", json.dumps(record, indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader or a kill never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def file_hash(path: Path) -> str:
    """sha256 of a file's content, remembered by size and modification time: models are large."""
    if not path.is_file():
        raise StropError(f"{path}: no such file")
    stat = path.stat()
    name = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()
    memo = home() / "hashes" / hashlib.sha256(name).hexdigest()[:32]
    if not memo.exists():
        with path.open("rb") as file:
            write_atomically(memo, hashlib.file_digest(file, "sha256").hexdigest())
    return memo.read_text()


def directory_hash(path: Path) -> str:
    """Hash of a model directory: the names and contents of the files that make it what it is."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"))
    return hashlib.sha256("\n".join(f"{f.name} {file_hash(f)}" for f in files).encode()).hexdigest()
