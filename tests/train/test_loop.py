"""The loop: one loss and one gradient however rows are cut, no step without a reason, no trace of an interruption."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import StropError
from strop.train.loop import Stage, Step, TrainConfig, accumulate, train
from strop.train.optim import Optimizer, learning_rate
from strop.train.rl import ALGORITHMS, PolicyGradient
from strop.train.sft import CrossEntropy, weighed
from strop.types import Datum


def rows(count: int, seed: int = 0, active: float = 0.6) -> list[Datum]:
    """Rows of 2 to 29 tokens with whatever any objective reads; a share `active` of the tokens carries weight."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        n = int(rng.integers(2, 30))
        fields = {"advantage": rng.normal(), "scale": 1 / n, "old_logprob": rng.normal(-6, 1, n)}
        weight = rng.uniform(0.5, 2, n) * (rng.random(n) < active)
        out.append(Datum.from_tokens(rng.integers(0, 350, n), weight, ref_logprob=rng.normal(-6, 1, n), **fields))
    return out


OBJECTIVES = {
    "cross-entropy": CrossEntropy(),
    "grpo": PolicyGradient(ALGORITHMS["grpo"], temperature=1.3, kl_coef=0.1, tolerance=math.inf),
    "reinforce": PolicyGradient(ALGORITHMS["reinforce"], tolerance=math.inf),
}
ROWS = rows(12)


@pytest.fixture(scope="module")
def gradient(random_checkpoint):
    """(metrics, gradient) of a step on a fixed model."""
    from strop.sampling.policy import Policy

    policy = Policy.load(random_checkpoint("qwen3"))

    def measure(objective, datums, micro_tokens):
        metrics = accumulate(policy, objective, Step(datums, 7.0), micro_tokens)
        return metrics, torch.cat([p.grad.flatten() for p in policy.decoder.parameters()])

    return measure


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30)
@given(order=st.permutations(range(len(ROWS))), micro_tokens=st.integers(1, 400))
def test_loss_and_gradient_do_not_depend_on_order_padding_or_micro_batches(gradient, name, order, micro_tokens):
    expected, expected_gradient = gradient(OBJECTIVES[name], ROWS, 10**6)
    metrics, found = gradient(OBJECTIVES[name], [ROWS[i] for i in order], micro_tokens)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (found - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


def test_a_mean_over_tokens_is_the_whole_steps(gradient):
    two = [Datum.from_tokens([5, 6, 7, 8, 9], [0, 1, 1, 1, 1]), Datum.from_tokens([9, 4], [0, 1])]
    long, short = (gradient(CrossEntropy(), [d], 10**6)[0]["loss"] * 7 for d in two)
    step = weighed(two)
    assert step.denominator == 5
    metrics, _ = gradient(CrossEntropy(), two, 1)
    assert metrics["loss"] * 7 / step.denominator == pytest.approx((long + short) / 5, rel=1e-5)


NOTHING = {
    "no rows": Step([], 1.0),
    "no active token": weighed([Datum.from_tokens([1, 2, 3], [0, 0, 0])] * 2),
    "one-token row": weighed([Datum.from_tokens([1], [1.0])]),
    "no advantage": Step([Datum.from_tokens([1, 2, 3], [0, 1, 1], advantage=0, old_logprob=0, scale=1)], 2.0),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("nothing", NOTHING)
def test_a_step_with_nothing_to_learn_from_changes_no_bit(policy, weights, tmp_path, optimizer, nothing):
    config = TrainConfig(lr=1e-2, optimizer=optimizer, weight_decay=0.1, schedule="constant")
    seen = []
    steps = [Step(rows(3, seed=1), 3.0), NOTHING[nothing], NOTHING[nothing]]  # momentum and decay are at hand
    stage = Stage(tmp_path, progress=lambda *_: seen.append(weights(policy)))
    train(policy, steps.__getitem__, OBJECTIVES["reinforce"], config, 3, stage)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and seen[0].isfinite().all()
    logged = [json.loads(line) for line in stage.metrics.read_text().splitlines()]
    assert [row["grad_norm"] > 0 for row in logged] == [True, False, False]
    assert all(math.isfinite(value) for row in logged for value in row.values())


class Killed(Exception):
    pass


def logged(stage: Stage) -> list[dict]:
    """The metrics, the clock aside."""
    return [{**json.loads(line), "seconds": 0} for line in stage.metrics.read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("where", ["in the source", "after the log, before the save"])
def test_a_resumed_run_ends_in_the_same_bits(policy, weights, tmp_path, optimizer, where):
    config = TrainConfig(lr=3e-3, optimizer=optimizer, weight_decay=0.01, save_seconds=0)
    whole, cut = Stage(tmp_path / "whole"), Stage(tmp_path / "cut")
    again, asked = policy.copy(), []

    def run(policy, stage, kill=None):
        def source(step):
            asked.append(step)
            if (step, where) == (kill, "in the source"):
                raise Killed
            return Step(rows(4, seed=step), 4.0)

        def progress(done, steps, metrics):
            if (done - 1, where) == (kill, "after the log, before the save"):
                raise Killed

        return train(policy, source, CrossEntropy(), config, 6, Stage(stage.path, 0, progress))

    expected = run(policy, whole)
    asked.clear()
    for step in (0, 2, 4):
        with pytest.raises(Killed):
            run(again.copy(), cut, kill=step)
    ledger = run(again, cut)
    assert asked == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert torch.equal(weights(again), weights(policy))
    assert logged(cut) == logged(whole) and [row["step"] for row in logged(cut)] == list(range(6))
    assert (ledger.trained_tokens, ledger.flops) == (expected.trained_tokens, expected.flops)
    assert again.version == policy.version == 6


def test_a_new_run_does_not_go_on_with_another_ones_metrics(policy, tmp_path):
    config = TrainConfig(save_seconds=100)
    for steps in (3, 2):
        train(policy, lambda step: Step(rows(2), 2.0), CrossEntropy(), config, steps, Stage(tmp_path))
    assert len(logged(Stage(tmp_path))) == 2 and not Stage(tmp_path).checkpoint.exists()


class Broken(CrossEntropy):
    """Cross-entropy whose value, or value and gradient, is not finite."""

    def __init__(self, term: float, factor: float = 1.0):
        self.term, self.factor = term, factor

    def __call__(self, logprobs, entropy, batch):
        numerator, metrics = super().__call__(logprobs, entropy, batch)
        return numerator * self.factor + self.term, metrics


@pytest.mark.parametrize("objective", [Broken(math.inf), Broken(math.nan), Broken(0, math.nan), Broken(0, math.inf)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_not_finite_stops_and_changes_nothing(policy, weights, tmp_path, objective, optimizer):
    before = weights(policy)
    with pytest.raises(StropError, match=r"^step 0: loss or gradient is not finite; lower lr \(now 0.5\)$"):
        config = TrainConfig(lr=0.5, optimizer=optimizer, schedule="constant", warmup=0)
        train(policy, lambda step: Step(rows(3), 3.0), objective, config, 2, Stage(tmp_path))
    assert torch.equal(weights(policy), before)


def test_an_error_leaves_no_gradient_to_the_next_run(policy, weights, tmp_path):
    calls = []

    class RaisesLate(CrossEntropy):
        def __call__(self, *args):
            calls.append(args)
            if len(calls) == 2:
                raise StropError("late")
            return super().__call__(*args)

    other, step = policy.copy(), Step(rows(3, seed=5), 3.0)
    with pytest.raises(StropError, match="late"):
        train(policy, lambda _: Step(rows(3), 3.0), RaisesLate(), TrainConfig(micro_tokens=1), 1, Stage(tmp_path / "a"))
    for trained in (policy, other):
        train(trained, lambda _: step, CrossEntropy(), TrainConfig(), 1, Stage(tmp_path / "b"))
    assert torch.equal(weights(policy), weights(other))


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(policy):
    adamw, muon = Optimizer(policy.decoder, "muon")._parts
    names = {id(p): n for n, p in policy.decoder.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert taken == {n for n in names.values() if ".layers." in n and "norm" not in n}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert left == set(names.values()) - taken


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_the_rate_warms_up_and_falls_as_scheduled(schedule, expected):
    assert [learning_rate(i, 6, 2.0, 1 / 3, schedule) / 2 for i in range(6)] == pytest.approx(expected)


@given(st.integers(1, 300), st.floats(1e-6, 1.0), st.floats(0, 1), st.sampled_from(["constant", "linear", "cosine"]))
def test_the_rate_never_leaves_its_bounds_and_rises_only_while_warming_up(steps, peak, warmup, schedule):
    rates = [learning_rate(i, steps, peak, warmup, schedule) for i in range(steps)]
    assert all(0 < rate <= peak for rate in rates)
    top = min(steps - 1, math.floor(warmup * steps))
    assert rates[: top + 1] == sorted(rates[: top + 1]) or top == 0
    assert rates[top:] == sorted(rates[top:], reverse=True)
