"""RL against numbers worked out by hand: advantages, losses, gradients, draws; and what must stop a run."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import StropError
from strop.evals import evaluate as evals
from strop.model.scoring import Batch, collate
from strop.train import kl
from strop.train.kl import KLProbe
from strop.train.loop import Stage, Step, accumulate
from strop.train.rl import ALGORITHMS, PolicyGradient, RLConfig, advantages, draw, rl, rollout_datums
from strop.types import Author, Datum, Prompt, Rollout, Sampling, Turn, Verdict

GRPO, REINFORCE = ALGORITHMS["grpo"], ALGORITHMS["reinforce"]
NAN = math.nan


class Short:
    """Right where the answer has at most `limit` characters; raises on the prompts in `crash`."""

    name = "short"

    def __init__(self, limit=8, crash=(), size=8):
        self.limit, self.crash, self.size = limit, crash, size

    def prompts(self, split):
        return [Prompt.user(f"{split} {i}", row=i) for i in range(self.size)]

    def verify(self, prompt, text):
        if prompt.row in self.crash:
            raise RuntimeError("the verifier broke")
        return Verdict(float(len(text) <= self.limit))

    def gold(self, prompt):
        return ""


def config(**settings):
    return RLConfig(**{"prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 6, "steps": 2, **settings})


@pytest.mark.parametrize(
    "algorithm, rewards, expected",
    [
        (GRPO, [[1, 0, 0, 1], [1, 1, 1, 1]], [[1, -1, -1, 1], [0, 0, 0, 0]]),
        (GRPO, [[1, 0, 0, 0]], [[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]]),
        (GRPO, [[1, NAN, 0], [NAN, NAN, NAN], [NAN, 1, NAN]], [[1, NAN, -1], [NAN] * 3, [NAN, 0, NAN]]),
        (REINFORCE, [[1, 0], [0, 0]], [[0.75, -0.25], [-0.25, -0.25]]),
        (REINFORCE, [[1, NAN], [0, 1]], [[1 / 3, NAN], [-2 / 3, 1 / 3]]),
        (REINFORCE, [[0.5, 0.5]], [[0, 0]]),
    ],
)
def test_advantages_by_hand(algorithm, rewards, expected):
    np.testing.assert_allclose(advantages(np.array(rewards, float), algorithm), expected, rtol=1e-5, atol=1e-9)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_are_centred_and_leave_the_invalid_out(rewards):
    rewards = np.array(rewards)
    for algorithm, axis in ((GRPO, 1), (REINFORCE, None)):
        found = advantages(rewards, algorithm)
        assert (np.isnan(found) == np.isnan(rewards)).all()
        assert np.nansum(found, axis) == pytest.approx(0, abs=1e-9)
    for group, row in zip(rewards, advantages(rewards, GRPO), strict=True):
        alone = advantages(group[~np.isnan(group)][None], GRPO)[0]
        np.testing.assert_allclose(row[~np.isnan(row)], alone)


def batch_of(**fields) -> Batch:
    """Active tokens that carry these fields; an objective looks at nothing else."""
    size = len(fields["advantage"])
    spread = {name: [0.0, *values] for name, values in fields.items()}
    given = {"old_logprob": 0.0, "ref_logprob": 0.0, "scale": 1.0, **spread}
    return collate([Datum.from_tokens([1] * (size + 1), [0.0] + [1.0] * size, **given)], torch.device("cpu"))


UP, DOWN = math.log(1.5), math.log(0.5)  # what the log-prob moved by since the token was drawn


@pytest.mark.parametrize(
    "algorithm, advantage, moved, loss, slope",
    [
        (GRPO, 2.0, 0.0, -2.0, -2.0),
        (GRPO, 2.0, math.log(1.1), -2.2, -2.2),
        (GRPO, 2.0, UP, -2.4, 0.0),  # already 1.5 times likelier: clipped at 1.2
        (GRPO, -2.0, UP, 3.0, 3.0),
        (GRPO, 2.0, DOWN, -1.0, -1.0),
        (GRPO, -2.0, DOWN, 1.6, 0.0),  # already half as likely: clipped at 0.8
        (REINFORCE, 2.0, UP, -2 * (UP - 3), -2.0),
        (REINFORCE, -0.5, DOWN, 0.5 * (DOWN - 3), 0.5),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_value_and_gradient_by_hand(algorithm, advantage, moved, loss, slope, scale):
    logprobs = torch.tensor([moved - 3], requires_grad=True)
    batch = batch_of(advantage=[advantage], old_logprob=[-3.0], scale=[scale])
    numerator, metrics = PolicyGradient(algorithm, tolerance=math.inf)(logprobs, torch.zeros(1), batch)
    numerator.backward()
    assert numerator.item() == pytest.approx(scale * loss, rel=1e-5)
    assert logprobs.grad.item() == pytest.approx(scale * slope, rel=1e-5)
    if algorithm is GRPO:
        assert metrics["clipped"] == float(slope == 0)


@pytest.mark.parametrize("gap", [-1.0, 0.0, 0.3])
@pytest.mark.parametrize("algorithm", [GRPO, REINFORCE])
def test_the_kl_term_by_hand(algorithm, gap):
    logprobs = torch.tensor([-2.0, -2.0], requires_grad=True)
    batch = batch_of(advantage=[0.0, 0.0], old_logprob=[-2.0] * 2, ref_logprob=[gap - 2] * 2, scale=[0.5, 1.0])
    numerator, metrics = PolicyGradient(algorithm, kl_coef=0.1)(logprobs, torch.zeros(2), batch)
    numerator.backward()
    k3 = math.exp(gap) - 1 - gap
    assert numerator.item() == pytest.approx(0.1 * 1.5 * k3, abs=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([0.05 * (1 - math.exp(gap)), 0.1 * (1 - math.exp(gap))], abs=1e-6)
    assert metrics["k3"].item() == pytest.approx(2 * k3, abs=1e-6)


def sampled(policy, temperature=1.0) -> list[Rollout]:
    prompts = Short().prompts("train")[:3]
    groups = policy.sample(prompts, Sampling(temperature, max_tokens=6, seed=1), 2)
    return [rollout for group in groups for rollout in group]


def learn(policy, rollouts, temperature=1.0):
    datums = rollout_datums(rollouts, np.ones(len(rollouts)), GRPO, None)
    return accumulate(policy, PolicyGradient(GRPO, temperature), Step(datums, 1.0), 4096)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampler_and_trainer_agree(policy, temperature):
    assert learn(policy, sampled(policy, temperature), temperature)["drift"] < 1e-5


@pytest.mark.parametrize("wrong", ["temperature", "stale weights"])
def test_a_wrong_temperature_or_stale_weights_stop_the_run(policy, wrong):
    rollouts = sampled(policy)
    if wrong == "stale weights":
        with torch.no_grad():
            policy.decoder.model.norm.weight.mul_(1.001)
    with pytest.raises(StropError, match=r"sampler and trainer disagree on a token by .* nats \(0.0001 allowed\)"):
        learn(policy, rollouts, 0.98 if wrong == "temperature" else 1.0)


def test_rl_itself_notices_a_sampler_with_other_weights(policy, tmp_path):
    stale = policy.copy()
    policy.engine.decoder = stale.decoder  # never told of an update
    with pytest.raises(StropError, match="sampler and trainer disagree"):
        rl(policy, Short(), config(steps=3, lr=1e-2), Stage(tmp_path))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # the first step was sound


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("algorithm, scale", [(GRPO, np.float32(1 / 3)), (REINFORCE, 1)])
def test_only_the_policys_own_tokens_are_learnt(policy, reference, algorithm, scale):
    turns = Turn((5, 6), (7, 8), (-1.0, -2.0)), Turn((9, 10, 11), (12,), (-3.0,))
    two = Rollout(Prompt.user("q"), turns, Sampling(), "stop", "text")
    [datum] = rollout_datums([two], np.array([0.5]), algorithm, policy if reference else None)
    own = [author is Author.POLICY for author in two.authors][1:]
    assert datum.fields["weight"].tolist() == own == [False, True, True, False, False, False, True]
    assert datum.targets[own].tolist() == [7, 8, 12]
    assert datum.fields["old_logprob"][own].tolist() == [-1, -2, -3]
    assert set(datum.fields["scale"][own].tolist()) == {scale}
    scores = policy.score([two])[0] if reference else [-1, -2, -3]
    assert datum.fields["ref_logprob"][own].tolist() == pytest.approx(scores, abs=1e-4)


def test_rows_without_an_advantage_are_learnt_only_for_their_kl(policy):
    rollouts = sampled(policy)
    weights = np.array([1.0, 0, NAN, -1, 0, NAN])
    assert [len(rollout_datums(rollouts, weights, GRPO, reference)) for reference in (None, policy)] == [2, 4]


def test_reward_rises_on_a_toy_task_and_a_run_repeats_itself(policy, weights, tmp_path):
    again = policy.copy()
    settings = config(steps=12, prompts_per_step=8, lr=1e-2, kl_every=5)
    for trained, name in ((policy, "a"), (again, "b")):
        probe = KLProbe(trained.copy(), Short().prompts("dev"), 6)
        ledger = rl(trained, Short(), settings, Stage(tmp_path / name, seed=3), probe)
    assert torch.equal(weights(policy), weights(again))
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([r["reward"] for r in rows[-3:]]) > np.mean([r["reward"] for r in rows[:3]]) + 0.2
    assert [("kl" in r) for r in rows] == [i % 5 == 0 for i in range(12)]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5) and rows[10]["kl"] > 0.1
    assert all(r.get("drift", 0) < 1e-5 and r["invalid"] == 0 and r["length"] <= 6 for r in rows)
    assert ledger.calls == 12 * 32 and 0 < ledger.generated_tokens <= 12 * 32 * 6 and ledger.trained_tokens > 0


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce"])
def test_a_kl_term_holds_the_policy_to_its_reference(policy, tmp_path, algorithm):
    kls = []
    for coefficient in (0.0, 1.0):
        trained = policy.copy()
        probe = KLProbe(policy, Short().prompts("dev"), 6)
        settings = config(algorithm=algorithm, steps=6, lr=3e-3, kl_coef=coefficient)
        rl(trained, Short(), settings, Stage(tmp_path / str(coefficient)), probe)
        kls.append(probe.measure(trained))
    assert 0 < kls[1] < kls[0]


@pytest.mark.parametrize(
    "task, settings, says",
    [
        (Short(crash=(0, 1, 2)), {}, "verdicts are invalid, first at row .: RuntimeError"),
        (Short(size=0), {}, "task short: split 'train' has no prompts"),
        (Short(), {"kl_coef": 0.1}, "kl_coef needs a reference"),
    ],
)
def test_what_stops_a_run(policy, weights, tmp_path, task, settings, says):
    before = weights(policy)
    with pytest.raises(StropError, match=says) as raised:
        rl(policy, task, config(**settings), Stage(tmp_path))
    assert "\n" not in str(raised.value)
    assert torch.equal(weights(policy), before)


def test_a_few_invalid_verdicts_are_counted_and_left_out(policy, tmp_path):
    settings = config(steps=1, prompts_per_step=32)
    rl(policy, Short(crash=(0,), size=32), settings, Stage(tmp_path))
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["invalid"] == 1 / 32 and 0 < row["reward"] < 1


def test_the_denominator_is_every_judged_sequence_of_the_step(policy, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("strop.train.rl.train", lambda policy, source, *_: given.append(source(0)))
    rl(policy, Short(crash=(0,), size=32), config(prompts_per_step=32), Stage(tmp_path))
    assert given[0].denominator == 31 * 4 > len(given[0].datums) > 0


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 20), st.integers(0, 5))
def test_prompts_come_in_epochs_whose_order_the_seed_alone_decides(size, first, count, seed):
    prompts = [Prompt.user(str(i), row=i) for i in range(size)]
    rows = [p.row for p in draw(prompts, first, count, seed)]
    assert rows == [p.row for i in range(first, first + count) for p in draw(prompts, i, 1, seed)]
    epochs = [p.row for p in draw(prompts, 0, 3 * size, seed)]
    assert all(sorted(epochs[i * size : (i + 1) * size]) == list(range(size)) for i in range(3))


def test_seeds_and_epochs_have_orders_of_their_own():
    prompts = [Prompt.user(str(i), row=i) for i in range(30)]
    orders = [[p.row for p in draw(prompts, first, 30, seed)] for first in (0, 30) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_no_two_draws_of_a_run_share_a_seed(policy, tmp_path, monkeypatch):
    seeds, asked, sample = [], [], policy.sample

    def recorded(*args):
        groups = sample(*args)
        asked.extend(prompt.row for prompt in args[0])
        seeds.extend(r.sampling.seed for group in groups for r in group)
        return groups

    monkeypatch.setattr(policy, "sample", recorded)
    probe = KLProbe(policy.copy(), Short().prompts("dev")[:2], 6)
    rl(policy, Short(size=12), config(steps=3), Stage(tmp_path, seed=2))
    assert len(seeds) == len(set(seeds)) == 3 * 16
    assert sorted(asked) == list(range(12))  # three steps of four prompts are one epoch
    probe.measure(policy)
    assert len(set(seeds)) == 3 * 16 + 2


@pytest.mark.parametrize("seed", [0, 1, 5120, 7168, 999_999])
def test_training_evaluation_and_kl_draw_from_places_of_their_own(seed):
    training = range(seed << 40, (seed + 1) << 40)
    evaluation = range(evals.SEED + (seed << 30), evals.SEED + ((seed + 1) << 30))
    probe = range(kl.SEED, kl.SEED + (1 << 40))
    spans = sorted([training, evaluation, probe], key=lambda span: span.start)
    assert all(a.stop <= b.start for a, b in zip(spans, spans[1:], strict=False)) and spans[-1].stop < 2**63
