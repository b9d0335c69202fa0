"""The run report: one HTML file that says what every stage bought and what it cost; a dash is what was not measured."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationError

from strop.data.rows import Row, read_rows
from strop.errors import StropError
from strop.ledger import Ledger

SAMPLES_SHOWN = 24  # per stage
POINTS_DRAWN = 400  # per curve
SPECIAL = r"<\|.+\|>|</?\w+>|\[/?[A-Z]+\]"  # <|endoftext|>, <s>, [INST]
CURVES = {"Loss": "loss", "Entropy, nats": "entropy", "Gradient norm": "grad_norm", "Learning rate": "lr"}
RL_CURVES = {"Reward": "reward", "KL to the start, nats": "kl", "Length, tokens": "length"}

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
    """A score of `model` in [0, 1], or its score minus that of `before`, with the ends of the 95 % interval."""

    task: str
    model: str = Field(validation_alias=AliasChoices("model", "after"))
    before: str | None = None
    metric: str
    extraction: str = "strict"
    n: int | None = None
    value: Number
    low: Number = None
    high: Number = None
    split: str = "test"
    truncated: Number = None
    invalid: int | None = None
    temperature: Number = None
    seed: int | None = None
    suite_hash: str = ""

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.low > 0 else "worse"


class Results(BaseModel, extra="allow"):
    """results.json. What else it holds (model, device, seed …) the page shows as it is."""

    name: str
    stages: dict[str, Stage]
    evaluations: list[Estimate] = []
    comparisons: list[Estimate] = []
    evaluation_ledger: dict[str, Ledger] = {}


class Sample(BaseModel):
    """A judged rollout. `learnt` marks the policy's own tokens."""

    task: str = ""
    how: str = ""
    gold: str = ""
    finish: str = ""
    tokens: list[str] = []
    learnt: list[int] = []
    correctness: Number = None
    invalid: str | None = None
    strict: Number = None
    flexible: Number = None

    @property
    def verdict(self) -> str:
        judged = None if self.invalid is not None else self.correctness
        return {None: "invalid", 1.0: "right", 0.0: "wrong"}.get(judged, "partly")

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
    """Write `directory/report.html` and return its path. Raises StropError where a file is missing or malformed."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    source, recipe, path = (directory / name for name in ("results.json", "recipe.yaml", "report.html"))
    if not source.exists():
        raise StropError(f"{source}: no such file; a finished run leaves one")
    with checking(source):
        results = Results.model_validate_json(source.read_bytes())
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page.globals |= {"curves": curves, "axis": axis}
    told: dict[str, Any] = {"results": results, "estimates": index(results.evaluations + results.comparisons)}
    told["samples"] = {name: read_samples(directory / "samples" / f"{name}.jsonl") for name in results.stages}
    told["traces"] = {name: read_traces(directory / "metrics" / f"{name}.jsonl") for name in results.stages}
    told["recipe"] = recipe.read_text(encoding="utf-8") if recipe.exists() else None
    path.write_text(page.get_template("report.html.j2").render(told), encoding="utf-8")
    return path


@contextmanager
def checking(path: Path) -> Iterator[None]:
    """Says in one line what is wrong with a file's content."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise StropError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the top level'}: {first['msg']}") from error


def index(rows: Sequence[Estimate]) -> dict[tuple[str | None, ...], Estimate]:
    """Rows by what they measure. The second suite of a task, one with other options, is renamed 'task (2)'."""
    suites, out = dict[str, dict[str, int]](), dict[tuple[str | None, ...], Estimate]()
    for row in rows:
        known = suites.setdefault(row.task, {})
        nth = known.setdefault(row.suite_hash, len(known) + 1)
        row.task += f" ({nth})" if nth > 1 else ""
        out[row.model, row.before, row.task, row.metric, row.extraction] = row
    return out


def read_traces(path: Path) -> list[Row]:
    """Rows of a JSONL file that a run may have left, else none."""
    return read_rows(path) if path.exists() and path.stat().st_size else []


def read_samples(path: Path) -> list[Sample]:
    """At most SAMPLES_SHOWN samples, taken in turn from every task, manner of sampling and verdict."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for row in read_traces(path):
        with checking(path):
            sample = Sample.model_validate(row)
        groups.setdefault((sample.task, sample.how, sample.verdict), []).append(sample)
    turns = [pair for group in groups.values() for pair in enumerate(group)]
    return [sample for _, sample in sorted(turns, key=lambda pair: pair[0])[:SAMPLES_SHOWN]]


def curves(kind: str, rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[float, float, float]]]]:
    """(title, what x is, points) per curve; a point is x, y, and the moving mean of y over a 25th of the steps."""
    rows = [{k: v for k, v in r.items() if isinstance(v, int | float) and math.isfinite(v)} for r in rows]
    titles, out = RL_CURVES if kind == "rl" else CURVES, []
    for title, x, y in [*((t, "step", y) for t, y in titles.items()), ("Reward against KL", "kl", "reward")]:
        known = [row for row in rows if y in row]
        values, half = [row[y] for row in known], len(known) // 50
        means = [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
        points = [(row[x], row[y], mean) for row, mean in zip(known, means, strict=True) if x in row]
        out.append((title, x, points[: -1 : 1 + len(points) // POINTS_DRAWN] + points[-1:]))
    return [curve for curve in out if curve[2]]


def axis(values: Sequence[float], start: float, end: float) -> tuple[list[float], list[tuple[float, float]]]:
    """Where the values lie between `start` and `end`, and (number, place) of the round numbers among them."""
    margin = (max(values) - min(values)) / 25 or abs(values[0]) / 2 or 1.0
    low, span = min(values) - margin, max(values) - min(values) + 2 * margin
    step = 10.0 ** math.floor(math.log10(span))
    step *= 0.2 if span < 1.5 * step else 0.5 if span < 3 * step else 1 if span < 6 * step else 2
    ticks = [i * step for i in range(math.ceil(low / step), math.floor((low + span) / step) + 1)]
    places = [round(start + (value - low) / span * (end - start), 1) for value in [*values, *ticks]]
    return places[: len(values)], list(zip(ticks, places[len(values) :], strict=True))
