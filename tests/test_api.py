"""`import strop` is light, and its few verbs work on a tiny model."""

import json
import subprocess
import sys
import time

import pytest
import torch

import strop
from strop.errors import StropError
from strop.sampling.policy import Policy
from strop.types import Prompt, Verdict

ROWS = [{"prompt": f"What is {i} + 1?", "completion": f"The answer is {i + 1}."} for i in range(4)]


class Short:
    name = "short"

    def prompts(self, split):
        return [Prompt.user(f"{split} {i}", row=i) for i in range(6)]

    def verify(self, prompt, text):
        return Verdict(float(len(text) <= 8))

    def gold(self, prompt):
        return ""


@pytest.mark.parametrize("module", ["strop", "strop.cli"])
def test_importing_is_quick_and_loads_no_torch(module):
    program = f"import time; t = time.perf_counter(); import {module}; import sys; took = time.perf_counter() - t\n"
    program += "print(f'{took:.4f}', sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    best = min(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    took, _, loaded = best.partition(" ")
    assert "torch" not in loaded and "transformers" not in loaded
    assert module != "strop" or float(took) < 0.3


def test_every_name_is_there_and_no_other():
    for name in strop.__all__:
        assert callable(getattr(strop, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        strop.trian  # noqa: B018


def test_load_and_sample(random_checkpoint):
    directory = random_checkpoint("llama")
    policy = strop.load(directory)
    assert isinstance(policy, Policy)
    groups = strop.sample(policy, ["What is 1 + 1?", Prompt.user("And 2 + 2?")], n=3, max_tokens=5, seed=4)
    assert [len(group) for group in groups] == [3, 3]
    assert all(len(r.completion_ids) <= 5 for group in groups for r in group)
    [[first, *_]] = strop.sample(directory, "What is 1 + 1?", n=3, max_tokens=5, seed=4)  # one question, by path
    assert first.completion_ids == groups[0][0].completion_ids
    greedy = [strop.sample(policy, "1?", temperature=0, seed=s, max_tokens=5)[0][0].text for s in (0, 1)]
    assert greedy[0] == greedy[1]


def test_task_finds_checks_and_lists():
    arithmetic = strop.task("arithmetic", tiers=[2], size=5)
    prompt = arithmetic.prompts("test")[0]
    assert arithmetic.verify(prompt, arithmetic.gold(prompt)).correctness == 1


@pytest.mark.parametrize("source", ["rows", "generator", "file"])
def test_sft_trains_in_place_and_saves(policy, weights, tmp_path, source):
    before, path = weights(policy), tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = {"rows": ROWS, "generator": (row for row in ROWS), "file": path}[source]
    trained = strop.sft(policy, rows, out=tmp_path / "model", epochs=1, batch_size=2)
    assert trained is policy and not torch.equal(weights(policy), before)
    assert torch.equal(weights(strop.load(tmp_path / "model")), weights(policy))


def test_a_path_is_loaded_and_the_files_stay_as_they_are(random_checkpoint, policy, weights):
    trained = strop.sft(random_checkpoint("llama"), ROWS, epochs=1)
    assert not torch.equal(weights(trained), weights(policy))
    assert torch.equal(weights(strop.load(random_checkpoint("llama"))), weights(policy))


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_rl_and_evaluate(policy, weights, kl_coef):
    before = weights(policy)
    settings = {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "max_tokens": 5, "lr": 1e-3}
    assert strop.rl(policy, Short(), kl_coef=kl_coef, **settings) is policy
    assert not torch.equal(weights(policy), before)
    rows = strop.evaluate(policy, Short(), samples=2, max_tokens=5, temperatures=[]).rows("mine", 0)
    assert {(row["model"], row["task"], row["n"]) for row in rows} == {("mine", "short", 6)}


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda p: strop.sft(p, ROWS, epoch=1), "SFTConfig: unknown key 'epoch'; did you mean 'epochs'?"),
        (lambda p: strop.sft(p, ROWS, lr="high"), "SFTConfig: lr: Input should be a valid number"),
        (lambda p: strop.sft(p, [{"text": "x"}]), "row:1: needs `messages`, or `prompt` and `completion`"),
        (lambda p: strop.sft(p, "gone.jsonl"), "gone.jsonl: no such file"),
        (lambda p: strop.rl(p, Short(), algorithm="ppo"), "RLConfig: algorithm: Input should be 'grpo' or"),
        (lambda p: strop.evaluate(p, Short(), k=8), "EvalConfig: unknown key 'k'; there are task, data"),
        (lambda p: strop.sample(p, "very " * 200), "context is 128"),
        (lambda p: strop.task("arithmetics"), "did you mean 'arithmetic'?"),
        (lambda p: strop.load("no/such/model"), "no such model directory"),
    ],
)
def test_mistakes_are_one_line(policy, call, says):
    with pytest.raises(StropError) as raised:
        call(policy)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_run_takes_a_path_and_overrides(random_checkpoint, store, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {random_checkpoint('llama')}\nstages:\n  sft: {{kind: sft, data: [{{data: x}}]}}\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    changes = [f"sft.data.0.data={tmp_path}/rows.jsonl", "threads=1", "sft.epochs=1"]
    out = strop.run(recipe, tmp_path / "out", set=changes)
    torch.use_deterministic_algorithms(False)
    assert out == tmp_path / "out" and (out / "model" / "model.safetensors").exists()
    began = time.perf_counter()
    strop.run(recipe, out, set=changes)
    assert time.perf_counter() - began < 1
