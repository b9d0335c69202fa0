"""The run report: one HTML file that says what every stage bought and what it cost.

Reads what a run left in its directory; knows nothing of models or training. The page is `report.html.j2`.
What was not measured is None, and a dash on the page: never a 0.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from strop.data.rows import Row, read_rows
from strop.errors import StropError
from strop.ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES_SHOWN = 24  # per stage
TOKENS_SHOWN = 40_000  # over all samples: what keeps the file under 2 MB
POINTS_DRAWN = 400  # per curve
SPECIAL = r"<\|.+\|>|</?\w+>|\[/?[A-Z]+\]"  # <|endoftext|>, <s>, [INST]

# Plots are drawn in these colours, then renamed to the page's own, so that they follow light and dark.
# The series are Okabe and Ito's, which colour-blind readers can tell apart; markers differ too.
INK, MUTED, LINE = "#1d1f22", "#6f6a61", "#e7e3da"
SERIES, MARKERS, GLYPHS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), "osD^", "●■◆▲"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {c: f"c{i}" for i, c in enumerate(SERIES)}
STYLE = {
    "svg.fonttype": "none", "font.size": 10, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip

RL_CURVES = {"reward": "Reward", "kl": "KL to the start, nats", "length": "Length, tokens"}
CURVES = {"loss": "Loss", "entropy": "Entropy, nats", "grad_norm": "Gradient norm", "lr": "Learning rate"}

Number = Annotated[float | None, AfterValidator(lambda x: x if x is not None and math.isfinite(x) else None)]


class Stage(BaseModel):
    """A stage of the run. `kl`: nats per completion to the model it started from."""

    kind: str
    key: str = ""
    parent: str | None = Field(None, alias="from")
    seconds: Number = None
    ledger: Ledger | None = None
    kl: Number = None


class Estimate(BaseModel):
    """A number over `n` prompts with the ends of its 95 % interval."""

    task: str
    metric: str
    extraction: str = "strict"
    n: int | None = None
    value: Number
    low: Number = None
    high: Number = None


class Score(Estimate):
    """What a stage's model scored, in [0, 1]."""

    model: str
    split: str = "test"
    truncated: Number = None
    invalid: int | None = None
    temperature: Number = None
    seed: int | None = None
    suite_hash: str = ""


class Difference(Estimate):
    """`after` minus `before` over the same prompts, in [-1, 1]."""

    after: str
    before: str

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.low > 0 else "worse"


class Results(BaseModel):
    """results.json."""

    model_config = ConfigDict(extra="allow")  # model, device, seed …: the page shows them as they are

    name: str
    stages: dict[str, Stage]
    evaluations: list[Score] = []
    comparisons: list[Difference] = []
    evaluation_ledger: dict[str, Ledger] = {}

    def children(self, parent: str | None) -> list[str]:
        """Stages that start from `parent`; for None, those that start from no stage before them."""
        order = list(self.stages)
        starts = [s.parent if s.parent in order[:i] else None for i, s in enumerate(self.stages.values())]
        return [name for name, start in zip(order, starts, strict=True) if start == parent]

    def bought(self, stage: str) -> list[Difference]:
        """What the first screen says of a stage: per task, its gain over the stage it started from."""
        rows = [d for d in self.comparisons if d.after == stage and d.extraction == "strict"]
        rows = [d for d in rows if d.before == self.stages[stage].parent] or rows
        return [d for d in rows if d.metric == "greedy"] or [d for d in rows if d.metric == "pass@1"]


class Sample(BaseModel):
    """A judged rollout. `learnt` marks the policy's own tokens."""

    task: str = ""
    how: str = ""
    question: str = ""
    gold: str = ""
    text: str = ""
    finish: str = ""
    tokens: list[str] = []
    learnt: list[int] = []
    correctness: Number = None
    invalid: str | None = None
    strict: Number = None
    flexible: Number = None

    @property
    def verdict(self) -> str:
        if self.invalid is not None or self.correctness is None:
            return "invalid"
        return {1.0: "right", 0.0: "wrong"}.get(self.correctness, "partly")

    def pieces(self, most: int) -> list[tuple[str, bool, bool]]:
        """(text, is the policy's own, is special) per token; beyond `most`, the middle is left out."""
        learnt = [*map(bool, self.learnt), *[False] * len(self.tokens)]
        shown = [t.replace("\n", "↵\n").replace("\t", "⇥") or "∅" for t in self.tokens]
        special = [re.fullmatch(SPECIAL, t) is not None for t in self.tokens]
        out = list(zip(shown, learnt, special, strict=False))
        if len(out) > most:
            out[most // 2 : -(most // 2)] = [(f" … {len(out) - most // 2 * 2} more … ", False, False)]
        return out


def write_report(directory: Path) -> Path:
    """Write `directory/report.html` from what the run left in `directory`, and return its path.

    Raises StropError where results.json is missing or a file does not hold what it should.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = read_results(directory / "results.json")
    samples = {name: read_samples(directory / "samples" / f"{name}.jsonl") for name in results.stages}
    traces = {name: read_traces(directory / "metrics" / f"{name}.jsonl") for name in results.stages}
    recipe, path = directory / "recipe.yaml", directory / "report.html"
    tasks = dict.fromkeys(s.task for s in results.evaluations)
    metrics = list(dict.fromkeys(s.metric for s in results.evaluations))
    pairs: dict[tuple[str, ...], dict[tuple[str, str], Difference]] = {}
    for d in results.comparisons:
        pairs.setdefault((d.after, d.before, d.task), {})[d.metric, d.extraction] = d
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = page.get_template("report.html.j2").render(
        results=results,
        samples=samples,
        traces=traces,
        pairs=pairs,
        scores={(s.model, s.task, s.metric, s.extraction): s for s in results.evaluations},
        metrics=[(name, GLYPHS[i % 4], i % 4) for i, name in enumerate(metrics)],
        accuracy={task: accuracy_plot(results, task, metrics) for task in tasks},
        panels={name: panels(name, results.stages[name].kind, rows) for name, rows in traces.items() if rows},
        most=max(40, TOKENS_SHOWN // max(1, sum(map(len, samples.values())))),
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else None,
    )
    path.write_text(text, encoding="utf-8")
    return path


def read_results(path: Path) -> Results:
    """results.json, checked."""
    if not path.exists():
        raise StropError(f"{path}: no such file; a finished run leaves one")
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:  # pydantic's own error is a ValueError
        raise StropError(f"{path}: {_fault(error)}") from error


def read_traces(path: Path) -> list[Row]:
    """Rows of a JSONL file that a run may have left, else none."""
    return read_rows(path) if path.exists() and path.stat().st_size else []


def read_samples(path: Path) -> list[Sample]:
    """At most SAMPLES_SHOWN samples, taken in turn from every task, manner of sampling and verdict."""
    try:
        samples = [Sample.model_validate(row) for row in read_traces(path)]
    except ValidationError as error:
        raise StropError(f"{path}: {_fault(error)}") from error
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.task, sample.how, sample.verdict), []).append(sample)
    turns = [(turn, sample) for group in groups.values() for turn, sample in enumerate(group)]
    return [sample for _, sample in sorted(turns, key=lambda pair: pair[0])[:SAMPLES_SHOWN]]


def _fault(error: Exception) -> str:
    """What is wrong with a file, in one line."""
    if not isinstance(error, ValidationError):
        return f"cannot be read as JSON: {error}"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the top level'}: {first['msg']}"


def accuracy_plot(results: Results, task: str, metrics: Sequence[str]) -> str:
    """Scores by stage with their intervals, and a thin line to each from the stage it started from."""
    rows = [s for s in results.evaluations if (s.task, s.extraction) == (task, "strict")]
    names = [name for name in results.stages if any(s.model == name for s in rows)]

    def draw(axes: Axes) -> None:
        for i, metric in enumerate(metrics):
            shift, color = 0.13 * (i - (len(metrics) - 1) / 2), SERIES[i % 4]
            scores = {s.model: s for s in rows if s.metric == metric and s.model in names}
            y = {name: 100 * s.value for name, s in scores.items() if s.value is not None}
            x = {name: names.index(name) + shift for name in y}
            for name in y:
                bar = scores[name].low, scores[name].high
                ends = [y[name] if end is None else 100 * end for end in bar]
                axes.plot([x[name], x[name]], ends, color=color, lw=1.6)
                axes.plot(x[name], y[name], MARKERS[i % 4], color=color, ms=5.5)
                if (start := results.stages[name].parent or "") in y:
                    axes.plot([x[start], x[name]], [y[start], y[name]], color=color, lw=1, alpha=0.35)
        turn, side = (35, "right") if sum(map(len, names)) > 48 else (0, "center")
        axes.set_xticks(range(len(names)), names, color=INK, parse_math=False, rotation=turn, ha=side)
        axes.set(xlim=(-0.5, max(len(names), 2) - 0.5), ylim=(-3, 103), yticks=range(0, 101, 25))

    return svg(draw, f"{task}: accuracy by stage, in percent", 500, 250)


def panels(stage: str, kind: str, rows: Sequence[Row]) -> list[tuple[str, list[float], str]]:
    """(title, ends, plot) of a stage's curves by step, and of reward against KL where both were measured."""
    titles = RL_CURVES if kind == "rl" else CURVES
    curves = {title: (*curve(rows, key), "step") for key, title in titles.items()}
    (steps, _, reward), (measured, kl, _) = curve(rows, "reward"), curve(rows, "kl")
    both = np.isin(measured, steps)
    if both.sum() > 1:
        reward = reward[np.searchsorted(steps, measured[both])]
        curves["Reward against KL"] = kl[both], reward, reward, RL_CURVES["kl"]
    out = []
    for title, (x, y, mean, label) in curves.items():
        if len(x):
            every = -(-len(x) // POINTS_DRAWN)
            draw = partial(draw_curve, x[::every], y[::every], mean[::every], label)
            out.append((title, mean[[0, -1]].tolist(), svg(draw, f"{stage}: {title}")))
    return out


def curve(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a metric was measured: steps, values, and the values' moving mean over a 25th of the curve."""
    pairs = [(r.get("step", i), r[key]) for i, r in enumerate(rows) if isinstance(r.get(key), int | float)]
    step, value = np.array([p for p in pairs if math.isfinite(p[1])], float).reshape(-1, 2).T
    half = len(value) // 50
    mean = [value[max(0, i - half) : i + half + 1].mean() for i in range(len(value))]
    return step, value, np.array(mean)


def draw_curve(x: np.ndarray, y: np.ndarray, mean: np.ndarray, label: str, axes: Axes) -> None:
    axes.plot(x, y, color=SERIES[0], lw=1, alpha=0.3)
    axes.plot(x, mean, color=SERIES[0], lw=1.8, marker="o" if len(x) < 25 else "", ms=3.5)
    axes.set_xlabel(label)


def svg(draw: Callable[[Axes], None], label: str, width: int = 270, height: int = 170) -> str:
    """What `draw` draws, as an SVG that is the same each time and takes its colours from the page."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True)
    # The date would differ, a style sheet would leak, and groups' ids repeat though nothing refers to them.
    rest = r'\A.*?<svg[^>]*>|<metadata>.*?</metadata>|<style.*?</style>|(?<=<g) id="[^"]*"'
    text = re.sub(rest, "", buffer.getvalue(), flags=re.DOTALL)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{text}')
