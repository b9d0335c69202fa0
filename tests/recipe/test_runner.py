"""Whole runs on a tiny random model: what they leave, what they never do twice, and what a kill can't change."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rich.console
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from strop.recipe import runner
from strop.recipe.config import load_recipe
from strop.recipe.plan import make_plan
from strop.recipe.show import Console
from strop.sampling.policy import Policy

pytestmark = pytest.mark.slow

TASK = """
from strop.types import Prompt, Verdict

class Short:
    name = "short"

    def prompts(self, split):
        return [Prompt.user(f"{split} {i}", row=i) for i in range(9)]

    def verify(self, prompt, text):
        return Verdict(float(len(text) <= 11))

    def gold(self, prompt):
        return ""
"""
RECIPE = """\
name: tiny
model: {model}
threads: 1
stages:
  sft: {{kind: sft, data: [{{data: {here}/rows.jsonl}}], epochs: 3, batch_size: 2, lr: 0.01, save_seconds: 0}}
  rl:
    kind: rl
    task: {here}/short.py:Short
    steps: 12
    prompts_per_step: 4
    samples_per_prompt: 4
    max_tokens: 8
    kl_every: 2
    save_seconds: 0
evaluate:
  - {{task: arithmetic, options: {{tiers: [2], size: 20}}, n: 6, samples: 2, max_tokens: 8, tune_n: 4}}
"""
STAGES = ["base", "sft", "rl"]
ROW = set("model task split n metric value low high extraction truncated invalid seed suite_hash temperature".split())
LEDGER = set(
    "prompt_tokens cached_tokens generated_tokens trained_tokens verifier_tokens flops seconds calls dollars".split()
)


@pytest.fixture(scope="module")
def recipe(random_checkpoint, tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("recipe")
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"The answer is {i + 1}."} for i in range(8)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "short.py").write_text(TASK)
    model = random_checkpoint("llama", max_position_embeddings=256)
    (here / "tiny.yaml").write_text(RECIPE.format(model=model, here=here))
    return here / "tiny.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A $STROP_HOME for the module; the settings that a run makes for its process are undone."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("home")
        patch.setenv("STROP_HOME", str(directory))
        yield directory
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def finished(recipe, home, tmp_path_factory) -> Path:
    """The directory of a run that nothing interrupted."""
    return runner.run(load_recipe(recipe), tmp_path_factory.mktemp("runs") / "tiny")


def results(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def times(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.rglob("*")}


def test_results_have_the_promised_schema(finished):
    found = results(finished)
    assert set(found) >= {"stages", "evaluations", "comparisons", "name", "model", "seed"}
    assert list(found["stages"]) == STAGES
    for name, stage in found["stages"].items():
        assert set(stage) == {"kind", "key", "from", "seconds", "ledger", "kl"} and set(stage["ledger"]) == LEDGER
        assert stage["kind"] == name
    sft, rl = (found["stages"][name] for name in ("sft", "rl"))
    assert sft["kl"] > 0 and rl["kl"] > 0 and found["stages"]["base"]["kl"] is None
    assert sft["ledger"]["trained_tokens"] > 0 and rl["ledger"]["calls"] == 12 * 16
    assert all(set(row) == ROW for row in found["evaluations"])
    measured = [(row["model"], row["metric"], row["extraction"]) for row in found["evaluations"]]
    metrics = ["greedy", "pass@1", "pass@1@best_t", "pass@2"]
    assert measured == [(s, m, e) for s in STAGES for m in metrics for e in ("strict", "flexible")]
    assert {row["n"] for row in found["evaluations"]} == {6}
    assert {(c["after"], c["before"]) for c in found["comparisons"]} == {("sft", "base"), ("rl", "sft")}


def test_a_run_leaves_its_traces(finished):
    page = (finished / "report.html").read_text()
    assert "tiny" in page and "arithmetic" in page
    for name in ("sft", "rl"):
        rows = lines(finished / "metrics" / f"{name}.jsonl")
        assert [row["step"] for row in rows] == list(range(12))
    assert {"reward", "kl", "length", "drift", "informative"} <= {key for row in rows for key in row}
    for name in STAGES:
        assert len(lines(finished / "samples" / f"{name}.jsonl")) == 12
        assert len(lines(finished / "evaluations" / f"{name}-0.jsonl")) == 6
    again = make_plan(load_recipe(finished / "recipe.yaml"))  # the run's own copy is the same recipe
    assert again.done and [s.artifact.key for s in again.stages.values()] == [
        stage["key"] for stage in results(finished)["stages"].values()
    ]


def test_transformers_loads_the_model_and_agrees(finished):
    model, ours = AutoModelForCausalLM.from_pretrained(finished / "model"), Policy.load(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    ids = tokenizer("What is 12 + 34?", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(ours.decoder.lm_head(ours.decoder(ids)), model(ids).logits, atol=1e-3, rtol=1e-3)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id and tokenizer.chat_template


def test_a_second_run_computes_nothing(finished, recipe, home):
    before, began = (times(home), times(finished)), time.perf_counter()
    runner.run(load_recipe(recipe), finished)
    assert (times(home), times(finished)) == before and time.perf_counter() - began < 5


def test_another_directory_is_laid_out_from_the_store(finished, recipe, home, tmp_path):
    before = times(home)
    runner.run(load_recipe(recipe), tmp_path / "again")
    assert times(home) == before
    assert set(times(tmp_path / "again")) == set(times(finished))
    assert results(tmp_path / "again") == results(finished)


def half_a_copy(source, target):
    target.mkdir()
    return 1 / 0


CRASHES = {"strop.recipe.runner.write_report": lambda out: 1 / 0, "strop.recipe.runner.shutil.copytree": half_a_copy}


@pytest.mark.parametrize("place", CRASHES)
@pytest.mark.parametrize("then", ["rl.steps=12", "rl.steps=1"])
def test_a_half_laid_out_directory_is_not_taken_for_whole(finished, recipe, tmp_path, monkeypatch, place, then):
    out = runner.run(load_recipe(recipe), tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(place, CRASHES[place])
        runner.run(load_recipe(recipe, ["rl.steps=1"]), out)
    runner.run(load_recipe(recipe, [then]), out)
    expected = runner.run(load_recipe(recipe, [then]), tmp_path / "expected")
    assert set(times(out)) == set(times(expected))
    for file in ("results.json", "report.html", "model/model.safetensors"):
        assert (out / file).read_bytes() == (expected / file).read_bytes()


def test_only_what_changed_runs_again(finished, recipe, home, tmp_path):
    before = times(home / "store")
    runner.run(load_recipe(recipe, ["rl.steps=2"]), tmp_path / "out")
    after = times(home / "store")
    new = {path.partition("/")[0] for path in after if path not in before}
    assert sorted(name.partition("-")[0] for name in new) == ["eval", "rl"]
    assert all(after[path] == before[path] for path in before)


def test_a_dry_run_says_what_would_run_and_does_nothing(finished, recipe, home):
    before, console = times(home), Console()
    for steps, state in ((12, "done"), (3, "runs: not in the store")):
        console.out = rich.console.Console(file=io.StringIO(), width=200)
        runner.dry_run(load_recipe(recipe, [f"rl.steps={steps}"]), console)
        cells = [[c.strip() for c in line.split("│")] for line in console.out.file.getvalue().splitlines()]
        states = {row[1]: row[4] for row in cells if len(row) > 4}
        assert states["sft"].startswith("done, took") and states["base on arithmetic"] == "done"
        assert states["rl"].startswith(state) and states["rl on arithmetic"].startswith(state)
    assert times(home) == before


def test_a_run_without_evaluations_or_a_dev_split(recipe, home, tmp_path):
    text = recipe.read_text().replace("arithmetic, options: {tiers: [2], size: 20}", f"{recipe.parent}/nodev.py:NoDev")
    (tmp_path / "nodev.yaml").write_text(text)
    source = TASK.replace("Short", "NoDev").replace("range(9)", "range(9 if split != 'dev' else 0)")
    (recipe.parent / "nodev.py").write_text(source)
    for name, overrides in (("nodev", []), ("none", ["evaluate=[]"])):
        loaded = load_recipe(tmp_path / "nodev.yaml", [*overrides, "sft.epochs=0", "rl.steps=1"])
        found = results(runner.run(loaded, tmp_path / name))
        assert found["stages"]["rl"]["kl"] is None and (tmp_path / name / "report.html").exists()


def test_a_killed_run_goes_on_to_the_same_bits(finished, recipe, tmp_path):
    """Killed at three moments, each time from outside, then left to finish."""
    command = [sys.executable, "-m", "strop.cli", "run", str(recipe), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "STROP_HOME": str(tmp_path / "home")}
    keys = {name: stage.artifact.path.name for name, stage in make_plan(load_recipe(recipe)).stages.items()}
    for stage, step in (("sft", 3), ("rl", 1), ("rl", 4)):
        log = tmp_path / "home" / "store" / keys[stage] / "metrics.jsonl"
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < step):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()[1].decode()
        process.stderr.close()
        assert not (log.parent / "done.json").exists()
        assert step == 1 or (log.parent / "resume.safetensors").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in ("model/model.safetensors", "model/tokenizer.json", "evaluations/rl-0.jsonl", "samples/sft.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    for stage in ("sft", "rl"):
        both = [lines(place / "metrics" / f"{stage}.jsonl") for place in (tmp_path / "out", finished)]
        assert [{**row, "seconds": 0} for row in both[0]] == [{**row, "seconds": 0} for row in both[1]]
    kls = [[s["kl"] for s in results(place)["stages"].values()] for place in (tmp_path / "out", finished)]
    assert kls[0] == kls[1]
