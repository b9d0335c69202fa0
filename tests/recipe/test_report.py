"""The run report: whole, self-contained, safe with hostile text, plain about what is missing."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from strop.errors import StropError
from strop.recipe.report import SAMPLES_SHOWN, Sample, write_report

STAGES = {"base": ("base", None), "mid": ("pretrain", "base"), "sft": ("sft", "mid"), "rl": ("rl", "sft"),
          "rl-kl": ("rl", "sft")}  # fmt: skip
SCORES = {  # greedy, pass@1, pass@1@best_t, pass@8
    "arithmetic": {
        "base": (0.021, 0.013, 0.018, 0.071), "mid": (0.094, 0.071, 0.088, 0.256),
        "sft": (0.283, 0.241, 0.272, 0.612), "rl": (0.912, 0.874, 0.905, 0.968),
        "rl-kl": (0.744, 0.671, 0.74, 0.934),
    },
    "rewrite": {
        "base": (0.003, 0.002, 0.003, 0.012), "mid": (0.062, 0.048, 0.061, 0.171),
        "sft": (0.438, 0.391, 0.43, 0.702), "rl": (0.417, 0.401, 0.419, 0.664),
        "rl-kl": (0.446, 0.4, 0.44, 0.7),
    },
}  # fmt: skip
METRICS = ("greedy", "pass@1", "pass@1@best_t", "pass@8")
N = 600


def ledger(rng: random.Random, size: float) -> dict[str, Any]:
    return {
        "prompt_tokens": int(size * rng.uniform(1e4, 2e4)), "cached_tokens": int(size * 1.1e5),
        "generated_tokens": int(size * 9.3e5), "trained_tokens": int(size * 1.2e6), "verifier_tokens": 0,
        "flops": size * 2.7e13, "seconds": size * 61.0, "calls": int(size * 5120), "dollars": 0.0,
    }  # fmt: skip


def results(rng: random.Random) -> dict[str, Any]:
    """A run of five stages that branches at sft, on two tasks."""
    stages, evaluations, comparisons = {}, [], []
    for i, (name, (kind, start)) in enumerate(STAGES.items()):
        stages[name] = {
            "kind": kind, "key": f"{rng.getrandbits(64):016x}", "from": start, "seconds": 61.3 * i,
            "ledger": ledger(rng, i), "kl": None if start is None else 4.1 * i,
        }  # fmt: skip
    for task, by_stage in SCORES.items():
        for name, values in by_stage.items():
            for metric, value in zip(METRICS, values, strict=True):
                for extraction in ("strict", "flexible"):
                    v = min(1.0, value + (0.011 if extraction == "flexible" else 0.0))
                    half = 1.96 * (v * (1 - v) / N) ** 0.5 + 0.002
                    evaluations.append({
                        "model": name, "task": task, "split": "test", "n": N, "metric": metric, "value": v,
                        "low": max(0.0, v - half), "high": min(1.0, v + half), "extraction": extraction,
                        "truncated": 0.083 if name == "base" else 0.004, "invalid": int(name == "mid"),
                        "seed": 0, "suite_hash": f"09af13c2d4e5{task}", "temperature": float(metric != "greedy"),
                    })  # fmt: skip
                    if start := STAGES[name][1]:
                        d = value - by_stage[start][METRICS.index(metric)]
                        half = 0.041 if abs(d) > 0.02 else 0.028
                        comparisons.append({
                            "task": task, "metric": metric, "extraction": extraction, "after": name,
                            "before": start, "n": N, "value": d, "low": d - half, "high": d + half,
                            "suite_hash": f"09af13c2d4e5{task}",
                        })  # fmt: skip
    return {
        "name": "nano-demo", "version": "0.1.0", "model": "strop-nano", "seed": 0, "device": "cpu",
        "dtype": "float32", "threads": 2, "stages": stages, "evaluations": evaluations,
        "comparisons": comparisons, "evaluation_ledger": {name: ledger(rng, 0.4) for name in STAGES},
    }  # fmt: skip


def metrics(rng: random.Random, kind: str, steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(steps):
        done = step / steps
        row = {
            "step": step, "lr": 1e-3 * (1 - done), "loss": 4.2 - 2.9 * done**0.5 + rng.gauss(0, 0.1),
            "grad_norm": rng.uniform(0.3, 1.2), "entropy": 2.1 - done, "tokens": 16384, "seconds": 0.9,
        }  # fmt: skip
        if kind == "rl":
            row |= {
                "reward": min(1.0, 0.28 + 0.65 * done**0.6 + rng.gauss(0, 0.03)), "drift": 2e-6,
                "length": 34 + 22 * done + rng.gauss(0, 1.5), "truncated": 0.01, "invalid": 0.0,
                "informative": 0.7 - 0.5 * done,
            }  # fmt: skip
            if step % 5 == 0:
                row["kl"] = 31 * done**1.3 + 0.1
        rows.append(row)
    return rows


def sample(rng: random.Random, task: str, right: bool) -> dict[str, Any]:
    a, b, c = (rng.randint(10, 99) for _ in range(3))
    total = a + b + c if right else a + b + c - 10
    question = f"What is {a} + {b} + {c}?"
    answer = f" {a} + {b} = {a + b}, {a + b} + {c} = {total}. The answer is {total}."
    asked = ["Question", ":", *re.findall(r" ?\w+|\W", question), "\n", "Answer", ":"]
    written = [*re.findall(r"\d| ?[a-zA-Z]+|\W", answer), "<|endoftext|>"]
    return {
        "task": task, "split": "test", "how": rng.choice(("greedy", "sampled")), "question": question,
        "gold": str(a + b + c), "tokens": asked + written, "learnt": [0] * len(asked) + [1] * len(written),
        "finish": "stop", "text": answer, "correctness": float(right), "invalid": None,
        "strict": float(right), "flexible": float(right),
    }  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(directory: Path) -> Path:
    """A run directory as the runner leaves it, with made-up numbers."""
    rng = random.Random(0)
    directory.mkdir(exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results(rng)))
    (directory / "recipe.yaml").write_text("name: nano-demo\nstages:\n  sft: {kind: sft, from: mid}\n")
    for name, (kind, _) in STAGES.items():
        if kind != "base":
            steps = 60 if kind == "rl" else 300
            write_lines(directory / "metrics" / f"{name}.jsonl", metrics(rng, kind, steps))
        chances = {task: by_stage[name][1] for task, by_stage in SCORES.items()}
        rows = [sample(rng, task, rng.random() < chances[task]) for task in SCORES for _ in range(24)]
        write_lines(directory / "samples" / f"{name}.jsonl", rows)
    return directory


def attributes_of(page: str) -> list[dict[str, str | None]]:
    """Every tag's attributes, as a browser would read them."""
    found: list[dict[str, str | None]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(dict(attributes))  # type: ignore[method-assign]
    parser.feed(page)
    return found


def change(directory: Path, **fields: Any) -> Path:
    """Replace entries of results.json."""
    path = directory / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_run(tmp_path_factory.mktemp("report") / "run")).read_text()


def test_is_one_file_that_fetches_nothing(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"<(?:link|img|iframe|object|embed)\b|@import|\burl\((?!#)|\bsrc=", page)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_first_screen_says_what_each_stage_bought(page: str) -> None:
    text = re.sub(r"<[^>]+>", "", page)
    assert "arithmetic greedy 28.3 → 91.2 (+62.9 points, 95% interval 58.8 to 67.0)" in text
    assert "rewrite greedy 43.8 → 41.7 (−2.1 points, 95% interval −6.2 to 2.0, no difference shown)" in text
    assert all(f"{name} over {start}" in text for name, (_, start) in STAGES.items() if start)
    assert page.index("91.2") < page.index("<svg") < page.index("Paired differences")


def test_every_stage_task_and_metric_is_there(page: str) -> None:
    for name in (*STAGES, *SCORES, *METRICS):
        assert f">{name}<" in page or f" {name}<" in page, name
    assert page.count("Reward against KL") == 2 * 2  # per RL stage: a title, and a label for screen readers
    assert 'data-stage="rl"' in page and "270 TFLOP" in page and "The recipe, resolved" in page


def test_a_task_evaluated_twice_stands_twice(run: Path) -> None:
    made = results(random.Random(0))
    rows = (*made["evaluations"], *made["comparisons"])
    for row in rows:
        if row["task"] == "rewrite":  # as if it were arithmetic with other options, and more samples
            row["task"], row["metric"] = "arithmetic", row["metric"].replace("@8", "@16")
    page = write_report(change(run, **made)).read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "arithmetic greedy 28.3 → 91.2 (+62.9 points" in text
    assert "arithmetic (2) greedy 43.8 → 41.7 (−2.1 points" in text
    summary = page[page.index("<table>") : page.index("</table>")]
    assert re.findall(r"<b>(arithmetic[^<]*)</b>", summary) == ["arithmetic", "arithmetic (2)"]
    first, second = (re.sub(r"<[^>]+>", " ", part) for part in summary.split("<b>arithmetic (2)</b>"))
    assert "96.8" in first and "66.4" in second and "66.4" not in first  # pass@8 and pass@16 of rl
    differences = page[page.index('id="differences"') : page.index('id="training"')]
    assert differences.count("rl over sft") == 2
    assert 'aria-label="arithmetic (2): accuracy by stage' in page


def test_is_the_same_each_time(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_hostile_text_stays_text(run: Path) -> None:
    bad = "<script>alert(1)</script>$x$ \"' onload=x"
    row = sample(random.Random(0), "arithmetic", True)
    row |= {"task": bad, "how": bad, "gold": bad, "invalid": bad, "correctness": None, "learnt": [0, 1, 1, 1]}
    write_lines(run / "samples" / "sft.jsonl", [row | {"tokens": ["a", bad, "</div>", "&amp;"]}])
    (run / "recipe.yaml").write_text(bad)
    made = results(random.Random(0)) | {"name": bad, "model": bad}
    for entry in (*made["evaluations"], *made["comparisons"]):
        entry.update({k: bad for k, v in entry.items() if v in ("rl", "arithmetic", "greedy")})
    made["stages"] = {(bad if k == "rl" else k): v for k, v in made["stages"].items()}
    (run / "results.json").write_text(json.dumps(made))
    page = write_report(run).read_text()
    assert page.count("<script>") == 1 and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x$" in page
    assert ">&lt;/div&gt;</b>" in page and "<b>&amp;amp;</b>" in page
    assert not any("onload" in attributes for attributes in attributes_of(page))


def test_needs_results_alone(tmp_path: Path) -> None:
    bare = {"name": "bare", "stages": {"base": {"kind": "base", "from": None}}}
    (tmp_path / "results.json").write_text(json.dumps(bare))
    page = write_report(tmp_path).read_text()
    assert ">bare</h1>" in page and "No stage was compared" in page and '<div class="box">' in page
    assert not re.search("<svg|<article|<details|<h2 id=.(cost|samples|training|differences)", page)


def test_what_was_not_measured_is_a_dash(run: Path) -> None:
    made = results(random.Random(0))
    for row in made["evaluations"]:
        if row["model"] == "rl":
            row.update(value=None, low=float("nan"), high=None, truncated=None, invalid=None)
    for row in made["comparisons"]:
        if row["after"] == "rl":
            row.update(value=float("nan"), low=None, high=None)
    made["stages"]["rl"].update(kl=None, ledger=None, seconds=None)
    nothing = {"loss": None, "reward": float("nan"), "kl": None, "truncated": None}
    write_lines(run / "metrics" / "rl.jsonl", [{"step": i} | nothing for i in range(3)])
    unjudged = sample(random.Random(0), "rewrite", True) | {"correctness": None}
    write_lines(run / "samples" / "rl.jsonl", [unjudged])
    page = write_report(change(run, **made)).read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "arithmetic greedy 28.3 → – (– points, 95% interval – to –, no difference shown)" in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


def test_malformed_results_are_told_in_one_line(run: Path) -> None:
    stages = json.loads((run / "results.json").read_text())["stages"]
    (run / "results.json").write_text("{")
    cases: list[tuple[dict[str, Any] | None, str]] = [
        (None, "Invalid JSON"),
        ({"stages": stages}, "name: Field required"),
        ({"name": "x", "stages": {"a": {}}}, "stages.a.kind: Field required"),
        ({"name": "x", "stages": stages, "evaluations": [{"model": "rl"}]}, "evaluations.0.task: Field"),
    ]
    for content, message in cases:
        if content is not None:
            (run / "results.json").write_text(json.dumps(content))
        with pytest.raises(StropError, match=message) as caught:
            write_report(run)
        assert "\n" not in str(caught.value) and "results.json" in str(caught.value)
    (run / "results.json").unlink()
    with pytest.raises(StropError, match="no such file"):
        write_report(run)


def test_malformed_samples_and_metrics_are_told_in_one_line(run: Path) -> None:
    write_lines(run / "samples" / "rl.jsonl", [{"tokens": 3}])
    with pytest.raises(StropError, match=r"rl\.jsonl: tokens: .*list"):
        write_report(run)
    write_lines(run / "samples" / "rl.jsonl", [])
    (run / "metrics" / "rl.jsonl").write_text('{"step": 0}\nhalf a li')
    with pytest.raises(StropError, match=r"rl\.jsonl:2: not JSON"):
        write_report(run)


def test_long_runs_stay_small(run: Path) -> None:
    long = [sample(random.Random(i), "arithmetic", i % 2 == 0) for i in range(200)]
    for row in long:
        row["tokens"], row["learnt"] = row["tokens"] * 40, row["learnt"] * 40
    for name in STAGES:
        write_lines(run / "samples" / f"{name}.jsonl", long)
    write_lines(run / "metrics" / "mid.jsonl", metrics(random.Random(0), "pretrain", 5000))
    page = write_report(run).read_text()
    assert len(page.encode()) < 2_000_000
    assert page.count("<article") == SAMPLES_SHOWN * len(STAGES)


def test_samples_keep_their_two_ends_and_show_what_is_invisible() -> None:
    tokens = ["<|endoftext|>", "a", "\n", "", "\t", "z"]
    shown = Sample(tokens=tokens, learnt=[0, 1, 1]).pieces(6)
    assert [text for text, _, _ in shown] == ["<|endoftext|>", "a", "↵\n", "∅", "⇥", "z"]
    assert [mine for _, mine, _ in shown] == [False, True, True, False, False, False]
    assert [special for _, _, special in shown] == [True] + [False] * 5
    cut = [text for text, _, _ in Sample(tokens=[str(i) for i in range(100)]).pieces(4)]
    assert cut == ["0", "1", " … 96 more … ", "98", "99"]


def test_a_stage_that_starts_from_a_later_one_is_a_root(run: Path) -> None:
    stages = json.loads((run / "results.json").read_text())["stages"]
    stages["base"]["from"] = "rl"
    page = write_report(change(run, stages=stages)).read_text()
    assert page.count('<div class="box">') == len(stages)
