"""KL to a reference: nothing between equals, the same number twice, and the one that its definition gives."""

import pytest
import torch

from strop.sampling.policy import Policy
from strop.train.kl import KLProbe
from strop.types import Prompt, Sampling

PROMPTS = [Prompt.user(f"What is {i} + 2?") for i in range(6)]


@pytest.fixture
def changed(policy):
    other = policy.copy()
    with torch.no_grad():
        other.decoder.model.norm.weight.mul_(1.2)
    return other


def test_no_kl_to_oneself_and_some_after_a_change(policy, changed):
    probe = KLProbe(policy.copy(), PROMPTS, 8)
    assert probe.measure(policy) == pytest.approx(0, abs=1e-5)
    assert probe.measure(changed) > 0.01
    assert KLProbe(changed, PROMPTS, 8).measure(policy) > 0.01  # positive in both directions


def test_measuring_repeats_and_changes_nothing(policy, changed, weights):
    probe, before = KLProbe(policy, PROMPTS, 8), weights(changed)
    values = [probe.measure(changed)]
    changed.sample(PROMPTS[:2], Sampling(max_tokens=30, seed=9), 5)  # other draws between don't matter
    assert values == [probe.measure(changed)] and torch.equal(weights(changed), before)


@torch.no_grad()
def test_it_is_the_mean_over_completions_of_the_summed_token_kl(policy, changed, monkeypatch):
    kept, sample = [], changed.sample

    def recorded(*args):
        kept.extend(r for group in sample(*args) for r in group)
        return [[r] for r in kept]

    monkeypatch.setattr(changed, "sample", recorded)
    found = KLProbe(policy, PROMPTS, 8).measure(changed)

    def logprobs(of: Policy, ids):
        return of.decoder.lm_head(of.decoder(torch.tensor([ids]))[0]).log_softmax(-1)

    total = 0.0
    for rollout in kept:
        start = len(rollout.ids) - len(rollout.completion_ids) - 1
        p, q = (logprobs(which, rollout.ids)[start:-1] for which in (changed, policy))
        total += float((p.exp() * (p - q)).sum())
    assert found == pytest.approx(total / len(PROMPTS), rel=1e-4)
