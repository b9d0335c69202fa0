"""What a person sees while a recipe runs: progress with throughput and time left, and token previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from strop.model.renderer import Renderer
from strop.sampling.policy import Policy, rollout_datum
from strop.types import Datum, Rollout

SHOWN = ("loss", "reward", "kl", "length")


class Console:
    """The terminal. All of it goes to standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self.out = rich.console.Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.out.print(text, soft_wrap=True, markup=False)

    def table(self, table: Table) -> None:
        self.out.print(table)

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.out, transient=not self.out.is_terminal)

    @contextmanager
    def stage(self, name: str, kind: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
        """A bar for a training stage; yields what the loop calls after every step."""
        began, tokens, latest = time.monotonic(), 0.0, dict[str, float]()
        with self._bar() as bar:
            row = bar.add_task(name, total=None, note="")

            def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
                nonlocal tokens
                tokens += metrics.get("tokens", 0.0)
                latest.update({k: metrics[k] for k in SHOWN if k in metrics})
                note = " ".join(f"{k} {v:.3g}" for k, v in latest.items())
                rate = tokens / max(1e-9, time.monotonic() - began)
                bar.update(row, total=steps, completed=step, note=f"{note}  {rate:,.0f} tok/s")

            yield progress
        summary = " ".join(f"{k} {v:.3g}" for k, v in latest.items())
        self.say(f"{name}: {kind} done in {time.monotonic() - began:.0f} s  {summary}")

    @contextmanager
    def evaluation(self, name: str) -> Iterator[Callable[[int], None]]:
        """A counter for an evaluation; yields what is called with the number of new rollouts."""
        began, done = time.monotonic(), 0
        with self._bar() as bar:
            row = bar.add_task(name, total=None, note="rollouts")

            def progress(new: int) -> None:
                nonlocal done
                done += new
                rate = done / max(1e-9, time.monotonic() - began)
                bar.update(row, completed=done, note=f"rollouts  {rate:,.0f}/s")

            yield progress

    def preview(self, datum: Datum, renderer: Renderer) -> None:
        """A row's tokens with their mask: what is learnt stands out, the rest is dim."""
        text = Text("learnt tokens are underlined: ", style="dim")
        weights = [0.0, *datum.fields["weight"].tolist()]
        ids = [int(datum.ids[0]), *datum.targets.tolist()]
        for piece, weight in list(zip(renderer.pieces(ids), weights, strict=True))[:160]:
            text.append(piece.replace("\n", "⏎"), style="bold underline green" if weight else "dim")
            text.append("·", style="dim")
        self.out.print(text, soft_wrap=True)

    def preview_rollout(self, policy: Policy) -> Callable[[Rollout], None]:
        """The same for a sampled rollout."""
        return lambda rollout: self.preview(rollout_datum(rollout), policy.renderer)
