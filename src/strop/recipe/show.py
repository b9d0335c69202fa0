"""What a person sees while a recipe runs: progress with throughput and time left, and token previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
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

    @contextmanager
    def _bar(self, name: str, unit: str, latest: dict[str, str]) -> Iterator[Callable[..., None]]:
        """A bar, if this is a terminal; yields what is called with the units done since, metrics and rich's fields."""
        began, done = time.monotonic(), 0.0
        columns = "{task.description:<12}", BarColumn(24), MofNCompleteColumn(), "{task.fields[note]}"
        times = TimeElapsedColumn(), "left", TimeRemainingColumn()
        with Progress(*columns, *times, console=self.out, disable=not self.out.is_terminal) as bar:
            row = bar.add_task(name, total=None, note=unit)

            def update(new: float, metrics: Mapping[str, float], **fields: float) -> None:
                nonlocal done
                done += new
                latest.update({k: f"{k} {metrics[k]:.3g}" for k in SHOWN if k in metrics})
                rate = f"{done / max(1e-9, time.monotonic() - began):,.0f} {unit}/s"
                bar.update(row, note="  ".join([" ".join(latest.values()), rate]), **fields)

            yield update

    @contextmanager
    def stage(self, name: str, kind: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
        """A bar for a training stage; yields what the loop calls after every step."""
        began, latest = time.monotonic(), dict[str, str]()
        with self._bar(name, "tok", latest) as update:
            yield lambda step, steps, metrics: update(metrics.get("tokens", 0.0), metrics, total=steps, completed=step)
        self.say(f"{name}: {kind} done in {time.monotonic() - began:.0f} s  {' '.join(latest.values())}")

    @contextmanager
    def evaluation(self, name: str) -> Iterator[Callable[[int], None]]:
        """A counter for an evaluation; yields what is called with the number of new rollouts."""
        with self._bar(name, "rollouts", {}) as update:
            yield lambda new: update(new, {}, advance=new)

    def preview(self, datum: Datum, renderer: Renderer) -> None:
        """A row's tokens with their mask: what is learnt stands out, the rest is dim."""
        ids, weights = [int(datum.ids[0]), *datum.targets.tolist()], [0.0, *datum.fields["weight"].tolist()]
        looks = ["bold underline green" if weight else "dim" for weight in weights]
        pieces = [Text(p.replace("\n", "⏎"), look) for p, look in zip(renderer.pieces(ids), looks, strict=True)]
        told = Text("learnt tokens are underlined: ", "dim")
        self.out.print(told.append(Text("·", "dim").join(pieces[:160])), soft_wrap=True)

    def preview_rollout(self, policy: Policy) -> Callable[[Rollout], None]:
        """The same for a sampled rollout."""
        return lambda rollout: self.preview(rollout_datum(rollout), policy.renderer)
