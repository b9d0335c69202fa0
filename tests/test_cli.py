"""The command line: its words are frozen, its JSON is a contract, and a user's mistake is one line."""

import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer

from strop.cli import app, main
from strop.sampling.policy import Policy
from strop.types import Prompt, Sampling

SURFACE = {
    "strop": "--debug --version",
    "strop run": "RECIPE --set --out --dry-run",
    "strop eval": "MODEL --task --data --split --limit --samples --max-tokens --seed --json",
    "strop sample": "MODEL PROMPT -n --raw --temperature --top-p --max-tokens --seed --json",
    "strop report": "DIRECTORY",
    "strop doctor": "",
    "strop tasks": "",
    "strop tasks list": "",
    "strop tasks show": "NAME --data --limit",
    "strop tasks validate": "NAME --data --limit",
}
ROW = set("model task split n metric value low high extraction truncated invalid seed suite_hash temperature".split())
BROKEN = """
from strop.types import Prompt

class Broken:
    name = "broken"

    def prompts(self, split):
        return [Prompt.user(f"{split} {i}", row=i) for i in range(4)]

    def verify(self, prompt, text):
        raise ValueError("no verdict\\nfrom here")

    def gold(self, prompt):
        return ""
"""
TYPO = "model: strop-nano\nstages:\n  sft:\n    kind: sft\n    data: [{task: arithmetic}]\n    epoch: 3\n"


def surface(command, name: str) -> dict[str, str]:
    """Every command with its options (all spellings) and arguments."""
    told = ["/".join(p.opts) if p.param_type_name == "option" else p.name.upper() for p in command.params]
    out = {name: " ".join(told)}
    for word, below in getattr(command, "commands", {}).items():
        out |= surface(below, f"{name} {word}")
    return out


def test_the_command_line_is_frozen():
    assert surface(typer.main.get_command(app), "strop") == SURFACE


@pytest.fixture
def strop(monkeypatch, capfd, store):
    """Run a command as the console script does; gives its exit status, standard output and standard error."""

    def strop(*words):
        monkeypatch.setattr(sys, "argv", ["strop", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return SimpleNamespace(code=left.value.code, out=out, err=err)

    return strop


@pytest.fixture(scope="module")
def model(random_checkpoint):
    """A model of 128 positions whose tokenizer says so, as real ones do."""
    source = random_checkpoint("llama")
    directory = source.with_name("with-length")
    shutil.copytree(source, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 128}))
    return directory


def test_sample_tells_everything_in_json(strop, model):
    done = strop("sample", model, "What is 1 + 1?", "-n", 3, "--seed", 5, "--max-tokens", 7, "--json")
    assert done.code == 0 and done.err == ""
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert all(set(row) == {"text", "tokens", "logprobs", "finish", "ledger"} for row in rows)
    [expected] = Policy.load(model).sample([Prompt.user("What is 1 + 1?")], Sampling(max_tokens=7, seed=5), 3)
    assert [row["tokens"] for row in rows] == [rollout.completion_ids for rollout in expected]
    for row in rows:
        assert len(row["tokens"]) == len(row["logprobs"]) == row["ledger"]["generated_tokens"] <= 7
        assert max(row["logprobs"]) <= 0 and row["finish"] in ("stop", "length")
    again = strop("sample", model, "What is 1 + 1?", "-n", 3, "--seed", 5, "--max-tokens", 7, "--json").out
    assert [json.loads(line)["tokens"] for line in again.splitlines()] == [row["tokens"] for row in rows]


def test_sample_raw_continues_the_text_itself(strop, model, monkeypatch):
    renderer = Policy.load(model).renderer
    spent = {}
    for words in (["--raw"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO("The answer"))
        done = strop("sample", model, "-", "--temperature", 0, "--max-tokens", 4, "--json", *words)
        spent[bool(words)] = json.loads(done.out)["ledger"]["prompt_tokens"]
    assert spent[True] == len(renderer.encode("The answer")) < spent[False]


def test_eval_prints_rows_or_a_table(strop, model):
    words = "eval", model, "--task", "rewrite", "--limit", 3, "--samples", 2, "--max-tokens", 4, "--seed", 1
    done = strop(*words, "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and all(set(row) == ROW for row in rows)
    assert [(r["metric"], r["extraction"]) for r in rows[::2]] == [
        (m, "strict") for m in ("greedy", "pass@1", "pass@2")
    ]
    assert {(r["model"], r["task"], r["split"], r["n"], r["seed"]) for r in rows} == {
        (str(model), "rewrite", "test", 3, 1)
    }
    table = strop(*words).out
    assert f"{model} on rewrite, test, n = 3" in table and table.count("strict") == 3


def test_tasks_are_listed_shown_and_validated(strop):
    listed = strop("tasks", "list").out
    assert {line.split()[0] for line in listed.splitlines()} >= {"arithmetic", "gsm8k", "rewrite"}
    shown = strop("tasks", "show", "arithmetic", "--limit", 2).out
    assert shown.count("gold: ") == 2
    assert strop("tasks", "validate", "rewrite", "--limit", 5).out == "task rewrite: sound\n"


def test_doctor_compares_sampler_and_scorer(strop, model, monkeypatch):
    monkeypatch.setattr("strop.api.load", lambda name: Policy.load(model))
    done = strop("doctor")
    assert done.code == 0 and "sampler and scorer differ by" in done.out and "cores" in done.out


def test_version(strop):
    assert strop("--version").out.startswith("strop 0.")


MISTAKES = {
    "typo in a recipe": ("run {tmp}/typo.yaml", "typo.yaml:6: stages.sft: unknown key 'epoch'; did you mean 'epochs'?"),
    "missing recipe": ("run quickstar", "quickstar: no such recipe; did you mean 'quickstart'?"),
    "wrong override": ("run quickstart --set rl.stepz=3", "stages.rl: unknown key 'stepz'; did you mean 'steps'?"),
    "missing file": ("eval {model} --task gsm8k --data {tmp}/gone.jsonl", "gone.jsonl: no such file"),
    "malformed row": ("eval {model} --task gsm8k --data {tmp}/bad.jsonl", "bad.jsonl:2: not JSON: "),
    "prompt too long": ("sample {model} {long}", "tokens; the model's context is 128"),
    "raw prompt too long": ("sample {model} {long} --raw", "tokens; the model's context is 128"),
    "empty prompt": ("sample {model} {empty} --raw", "prompt 0 has 0 tokens"),
    "empty model directory": ("sample {tmp}/empty hello", "empty: no config.json"),
    "missing model": ("sample {tmp}/gone hello", "gone: no such model directory"),
    "unknown task": ("eval {model} --task arithmetics", "unknown task 'arithmetics'; did you mean 'arithmetic'?"),
    "unknown split": ("eval {model} --task rewrite --split tset", "split: Input should be 'train', 'dev' or 'test'"),
    "verifier that raises": ("eval {model} --task {tmp}/broken.py:Broken", "invalid, first at row 0: ValueError: no"),
    "unsound task": ("tasks validate {tmp}/broken.py:Broken", "task {tmp}/broken.py:Broken: 20 checks failed"),
    "no run directory": ("report {tmp}/empty", "results.json: no such file"),
}


@pytest.fixture
def words(tmp_path, model):
    """A mistake's command line, and what it says, with the files that it needs."""
    (tmp_path / "empty").mkdir()
    for name, text in {
        "typo.yaml": TYPO, "broken.py": BROKEN, "bad.jsonl": '{"question": "1?", "answer": "#### 1"}\n{"question":\n'
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    places = {"tmp": tmp_path, "model": model, "long": "very " * 200, "empty": ""}

    def words(mistake):
        command, says = MISTAKES[mistake]
        return [word.format(**places) for word in command.split()], says.format(**places)

    return words


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_1(strop, words, mistake):
    command, says = words(mistake)
    done = strop(*command)
    lines = done.err.splitlines()
    if mistake == "unsound task":  # the checks that failed come first
        lines = lines[-1:]
    assert done.code == 1 and len(lines) == 1 and lines[0].startswith("strop: ") and says in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake, debug",
    [
        ("typo in a recipe", False),
        ("typo in a recipe", True),
        ("prompt too long", False),
        ("verifier that raises", True),
    ],
)
def test_a_process_of_its_own_says_no_more_unless_asked(words, store, mistake, debug):
    command, says = words(mistake)
    command = [sys.executable, "-m", "strop.cli", *command, *["--debug"] * debug]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr and done.stdout == ""
    assert ("Traceback" in done.stderr) == debug
    assert debug or (done.stderr.startswith("strop: ") and done.stderr.count("\n") == 1)
