"""Sampling speed side by side: Strop's engine against transformers' generate, same weights, dtype, threads and prompts.

    python benchmarks/decode.py [MODEL]

Greedy, 64 new tokens for every prompt (no stopping), batches of 1, 16 and 64, prompts of 32 tokens, the two in turn;
the median of five runs each and the median of the paired ratios. Needs nothing beyond Strop itself.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from strop.model.checkpoint import locate
from strop.recipe.machine import available_cores, keep_freed_memory
from strop.sampling.engine import Job
from strop.sampling.policy import Policy
from strop.types import Sampling

NEW, REPEATS = 64, 5


def main(name: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(available_cores())
    policy = Policy.load(name)
    peer = AutoModelForCausalLM.from_pretrained(locate(name), dtype=torch.float32).eval()
    row = policy.renderer.encode("Question: " + "What is 12 + 34 + 56? " * 4)[:32]
    print("| batch | Strop, tokens/s | generate, tokens/s | ratio |\n|---|---|---|---|")
    for batch in (1, 16, 64):
        jobs = [Job(str(i), tuple(row), Sampling(0.0, max_tokens=NEW)) for i in range(batch)]
        ids = torch.tensor([row] * batch)

        def ours(jobs: list[Job] = jobs) -> None:
            assert sum(len(sample.completion_ids) for sample in policy.engine.stream(jobs)) == len(jobs) * NEW

        def theirs(ids: torch.Tensor = ids) -> None:
            out = peer.generate(ids, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
            assert out.shape[1] == ids.shape[1] + NEW

        seconds = []
        for run in range(REPEATS + 1):
            pair = []
            for sampler in (ours, theirs):
                began = time.perf_counter()
                sampler()
                pair.append(time.perf_counter() - began)
            if run:  # the first warms up
                seconds.append(pair)
        rates = [batch * NEW / statistics.median(s[i] for s in seconds) for i in (0, 1)]
        ratio = statistics.median(s[1] / s[0] for s in seconds)
        print(f"| {batch} | {rates[0]:,.0f} | {rates[1]:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "strop-nano")
