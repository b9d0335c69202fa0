"""What a person sees while a recipe runs: progress with throughput and time left, and token previews."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from strop.model.renderer import Renderer
from strop.sampling.policy import Policy, rollout_datum
from strop.types import Datum, Rollout


class Console:
    """The terminal. All of it goes to standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self.out = rich.console.Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.out.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def _bar(self, name: str, unit: str, latest: dict[str, str]) -> Iterator[Callable[..., None]]:
        """A bar where this is a terminal; yields what is told of `new` units and of metrics, kept in `latest`."""
        cols = "{task.description:<12}", BarColumn(24), MofNCompleteColumn(), "{task.fields[note]}", TimeElapsedColumn()
        with Progress(*cols, "left", TimeRemainingColumn(), console=self.out, disable=not self.out.is_terminal) as bar:
            began, done, row = time.monotonic(), list[float](), bar.add_task(name, total=None, note="")

            def update(new: float, metrics: Mapping[str, float], step: int = 0, of: int | None = None) -> None:
                done.append(new)
                latest.update({k: f"{k} {metrics[k]:.3g}" for k in ("loss", "reward", "kl", "length") if k in metrics})
                rate = f"{sum(done) / max(1e-9, time.monotonic() - began):,.0f} {unit}/s"
                bar.update(row, completed=step or sum(done), total=of, note="  ".join([*latest.values(), rate]))

            yield update

    @contextmanager
    def stage(self, name: str, kind: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
        """A bar for a training stage; yields what the loop calls after every step."""
        began, latest = time.monotonic(), dict[str, str]()
        with self._bar(name, "tok", latest) as update:
            yield lambda step, steps, metrics: update(metrics.get("tokens", 0.0), metrics, step, steps)
        self.say(f"{name}: {kind} done in {time.monotonic() - began:.0f} s  {' '.join(latest.values())}")

    @contextmanager
    def evaluation(self, name: str) -> Iterator[Callable[[int], None]]:
        """A counter for an evaluation; yields what is called with the number of new rollouts."""
        with self._bar(name, "rollouts", {}) as update:
            yield lambda new: update(new, {})

    def preview(self, datum: Datum, renderer: Renderer) -> None:
        """A row's tokens with their mask: what is learnt stands out, the rest is dim."""
        ids, weights = [int(datum.ids[0]), *datum.targets.tolist()], [0.0, *datum.fields["weight"].tolist()]
        looks = ["bold underline green" if weight else "dim" for weight in weights]
        pieces = [Text(p.replace("\n", "⏎"), look) for p, look in zip(renderer.pieces(ids), looks, strict=True)]
        self.out.print("[dim]learnt tokens are underlined:[/]", Text("·", "dim").join(pieces[:160]), soft_wrap=True)

    def preview_rollout(self, policy: Policy) -> Callable[[Rollout], None]:
        """The same for a sampled rollout."""
        return lambda rollout: self.preview(rollout_datum(rollout), policy.renderer)
