"""KL to a reference, measured on a fixed set of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strop.model.head import token_kl
from strop.model.scoring import collate, micro_batches
from strop.sampling.policy import Policy, rollout_datum
from strop.types import Prompt, Sampling

SEED = 7 << 60  # the probe's own draws: the same at every measurement, and no training step's


@dataclass(frozen=True)
class KLProbe:
    """KL(policy ‖ reference) over completions that the policy itself samples at temperature 1."""

    reference: Policy
    prompts: Sequence[Prompt]
    max_tokens: int

    @torch.no_grad()
    def measure(self, policy: Policy) -> float:
        """Mean KL in nats per completion (full vocabulary at each token of a sample)."""
        sampled = policy.sample(self.prompts, Sampling(max_tokens=self.max_tokens, seed=SEED))
        rows = [rollout_datum(rollout) for group in sampled for rollout in group]
        total = 0.0
        for micro in micro_batches(rows, 8192):
            batch = collate(micro, policy.decoder.device)
            with policy.precision():
                ours, theirs = (p.decoder(batch.ids).flatten(0, 1)[batch.where] for p in (policy, self.reference))
                head, reference_head = policy.decoder.lm_head.weight, self.reference.decoder.lm_head.weight
                total += float(token_kl(ours, head, theirs, reference_head).sum())
        return total / len(rows)
