"""The terminal: bars where there is one, plain lines where there is none, and previews with their mask."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import rich.console
import torch

from strop.recipe.show import Console


def do(console: Console) -> None:
    with console.stage("rl", "rl") as progress:
        progress(1, 3, {"tokens": 900.0, "loss": 2.0, "kl": 0.5})
        progress(2, 3, {"tokens": 900.0, "loss": 1.23456, "lr": 0.1})
    with console.evaluation("rl arithmetic") as told:
        told(600)
        told(4800)


def test_without_a_terminal_only_plain_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    do(Console())
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "rl: rl done in 0 s  loss 1.23 kl 0.5\n"


def test_a_terminal_shows_bars_with_throughput() -> None:
    console = Console()
    console.out = rich.console.Console(file=io.StringIO(), force_terminal=True, width=160, highlight=False)
    do(console)
    text = console.out.file.getvalue()  # type: ignore[attr-defined]
    assert "2/3" in text and "loss 1.23  kl 0.5" in text and "tok/s" in text
    assert "5400/?" in text and "rollouts/s" in text and "left" in text


def test_a_preview_tells_learnt_tokens_from_others() -> None:
    console = Console()
    console.out = rich.console.Console(file=io.StringIO(), force_terminal=True, width=40, color_system="standard")
    datum = SimpleNamespace(ids=torch.tensor([1, 2]), targets=torch.tensor([2, 3]))
    datum.fields = {"weight": torch.tensor([0.0, 1.0])}
    console.preview(datum, SimpleNamespace(pieces=lambda ids: ["Q[b]", "\n", "yes"][: len(ids)]))  # type: ignore[arg-type]
    text = console.out.file.getvalue()  # type: ignore[attr-defined]
    assert "Q[b]" in text and "⏎" in text
    assert "\x1b[1;4;32myes" in text.replace("\x1b[1;2;4;32m", "\x1b[1;4;32m")
