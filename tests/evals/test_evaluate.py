"""Scores against a scripted policy, whose every answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import StropError
from strop.evals.evaluate import EvalConfig, evaluate
from strop.ledger import Ledger
from strop.protocols import Task
from strop.types import Prompt, Rollout, Turn, Verdict

FIELDS = ("model task split n metric value low high extraction truncated invalid seed suite_hash temperature").split()
METRICS = ["greedy", "pass@1", "pass@1@best_t", "pass@2"]


class Scored:
    """Judges by the answer's first letter: Right, Flexible (right for those who look closer), Crash, else wrong."""

    name = "scored"

    def __init__(self, size=4):
        self.size = size

    def prompts(self, split):
        return [Prompt.user(f"{split} {i}", task="scored", row=i) for i in range(self.size)]

    def verify(self, prompt, text):
        if text.startswith("C"):
            raise RuntimeError("crash")
        strict, flexible = float(text.startswith("R")), float(text[0] in "RF")
        return Verdict(strict, parts={"strict": strict, "flexible": flexible})

    def gold(self, prompt):
        return "R"


class Scripted:
    """Answers test prompts by `script[temperature]`, a string of answers per prompt, and dev prompts rightly as often
    as `dev[temperature]` says. Keeps what it was asked."""

    def __init__(self, script, dev=None, finish="stop"):
        self.script, self.dev, self.finish, self.asked = script, dev or {}, finish, []

    def sample(self, prompts, sampling, n=1):
        self.asked.append((prompts, sampling, n))
        on_dev = prompts[0].messages[0].content.startswith("dev")
        right = round(self.dev.get(sampling.temperature, 0) * len(prompts) * n)
        answers = "R" * right + "w" * (len(prompts) * n - right)
        dev = [answers[i * n : (i + 1) * n] for i in range(len(prompts))]
        script = dev if on_dev else self.script[sampling.temperature]
        turn, ledger = Turn((1,), (2,), (0.0,)), Ledger(generated_tokens=1, calls=1)
        return [
            [Rollout(prompt, (turn,), sampling, self.finish, script[i][j], ledger=ledger) for j in range(n)]
            for i, prompt in enumerate(prompts)
        ]


def config(**settings) -> EvalConfig:
    return EvalConfig(**{"task": "scored", "samples": 2, "temperatures": [0.5, 1.0], "tune_n": 4, **settings})


SCRIPT = {0.0: ["R", "w", "F", "w"], 1.0: ["Rw", "ww", "FF", "RR"], 0.5: ["RR", "Rw", "ww", "RF"]}


def values(result) -> dict[tuple[str, str], float]:
    return {(row["metric"], row["extraction"]): row["value"] for row in result.rows("m", 0)}


def test_every_number_of_a_small_script():
    result = evaluate(Scripted(SCRIPT, dev={0.5: 1.0, 1.0: 0.25}), Scored(), config(), seed=3)
    assert values(result) == {
        ("greedy", "strict"): 0.25, ("greedy", "flexible"): 0.5,
        ("pass@1", "strict"): 0.375, ("pass@1", "flexible"): 0.625,
        ("pass@1@best_t", "strict"): 0.5, ("pass@1@best_t", "flexible"): 0.625,
        ("pass@2", "strict"): 0.5, ("pass@2", "flexible"): 0.75,
    }  # fmt: skip
    assert isinstance(Scored(), Task)
    rows = result.rows("sft", 3)
    assert all(set(row) == set(FIELDS) for row in rows)
    assert [row["metric"] for row in rows[::2]] == METRICS
    assert {row["metric"]: row["temperature"] for row in rows} == dict(zip(METRICS, (0.0, 1.0, 0.5, 1.0), strict=True))
    shared = {"model": "sft", "task": "scored", "split": "test", "n": 4, "truncated": 0.0, "invalid": 0, "seed": 3}
    assert all(row | shared == row and row["low"] <= row["value"] <= row["high"] for row in rows)
    assert len({row["suite_hash"] for row in rows}) == 1
    assert result.ledger == Ledger(generated_tokens=36, calls=36)  # 4 + 8 + 8 test, 2 × 8 dev


@pytest.mark.parametrize("best", [0.5, 1.0])
def test_the_best_temperature_is_the_dev_prompts_best(best):
    result = evaluate(Scripted(SCRIPT, dev={best: 0.75, 1.5 - best: 0.5}), Scored(), config())
    assert result.temperatures["pass@1@best_t"] == best
    assert (result.draws["pass@1@best_t"] is result.draws["pass@1"]) == (best == 1.0)


def test_without_temperatures_or_samples_there_is_no_such_metric():
    result = evaluate(Scripted({**SCRIPT, 1.0: ["R", "w", "w", "w"]}), Scored(), config(temperatures=[], samples=1))
    assert list(result.draws) == ["greedy", "pass@1"]


def test_no_two_calls_share_a_seed_and_test_prompts_tune_nothing():
    policy = Scripted(SCRIPT, dev={0.5: 1.0})
    evaluate(policy, Scored(), config(n=3), seed=1)
    used = [range(s.seed, s.seed + len(prompts) * n) for prompts, s, n in policy.asked if s.temperature]
    assert len({seed for span in used for seed in span}) == sum(map(len, used))
    tuned = [{p.messages[0].content.split()[0] for p in prompts} for prompts, _, n in policy.asked]
    assert tuned.count({"dev"}) == 2 and all(len(splits) == 1 for splits in tuned)
    assert {len(prompts) for prompts, *_ in policy.asked} == {3, 4}  # n test prompts, tune_n dev prompts


answers = st.lists(st.text("RFw", min_size=3, max_size=3), min_size=1, max_size=8)


@given(answers)
def test_sampled_rates_are_means_and_pass_at_k_is_any(script):
    size = len(script)
    greedy = [answer[0] for answer in script]
    policy = Scripted({0.0: greedy, 1.0: script})
    result = evaluate(policy, Scored(size), config(samples=3, temperatures=[]))
    for extraction, right in (("strict", "R"), ("flexible", "RF")):
        hits = [[a in right for a in answer] for answer in script]
        found = {m: values(result)[m, extraction] for m in ("greedy", "pass@1", "pass@3")}
        assert found["greedy"] == pytest.approx(sum(h[0] for h in hits) / size)
        assert found["pass@1"] == pytest.approx(sum(map(sum, hits)) / (3 * size))
        assert found["pass@3"] == pytest.approx(sum(map(any, hits)) / size)
        assert result.rates("pass@1", extraction) == pytest.approx([sum(h) / 3 for h in hits])


def test_invalid_verdicts_are_counted_and_left_out():
    script = {0.0: ["R"] * 40, 1.0: ["RC", "CC", "Cw", *["Rw"] * 37]}
    result = evaluate(Scripted(script), Scored(40), config(temperatures=[]))
    rates = result.rates("pass@1", "strict")
    assert rates[0] == 1 and rates[1] != rates[1] and rates[2] == 0 and rates[3:] == [0.5] * 37
    found = {row["metric"]: row for row in result.rows("m", 0)}
    assert found["pass@1"]["value"] == pytest.approx((1 + 0 + 18.5) / 39) and found["pass@1"]["invalid"] == 4
    assert found["pass@2"]["value"] == pytest.approx(38 / 39)
    assert found["greedy"]["invalid"] == 0


@pytest.mark.parametrize(
    "task, script, says",
    [
        (Scored(), {**SCRIPT, 1.0: ["CC", "ww", "ww", "ww"]}, "2 of 8 verdicts are invalid, first at row 0: Runtime"),
        (Scored(0), SCRIPT, "task scored: split 'test' has no prompts"),
    ],
)
def test_what_stops_an_evaluation(task, script, says):
    with pytest.raises(StropError, match=says):
        evaluate(Scripted(script), task, config())


def test_truncation_and_progress_are_told():
    counts = []
    result = evaluate(Scripted(SCRIPT, finish="length"), Scored(), config(temperatures=[]), progress=counts.append)
    assert {row["truncated"] for row in result.rows("m", 0)} == {1.0} and sum(counts) == 12


def test_the_suite_hash_names_what_was_asked():
    hashes: dict[str, set[str]] = {}
    for name, settings in {"same": {}, "again": {}, "fewer": {"n": 3}, "longer": {"max_tokens": 9}}.items():
        rows = evaluate(Scripted(SCRIPT), Scored(), config(temperatures=[], **settings)).rows(name, 0)
        hashes.setdefault(rows[0]["suite_hash"], set()).add(name)
    assert sorted(map(sorted, hashes.values())) == [["again", "same"], ["fewer"], ["longer"]]
