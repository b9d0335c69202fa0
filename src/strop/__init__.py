"""Strop sharpens a base language model into a small, fast reasoner.

    policy = strop.load("strop-nano")
    [[rollout]] = strop.sample(policy, "What is 17 + 25?")

Names load on first use: `import strop` itself imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "rl", "run", "sample", "sft", "task"]

if TYPE_CHECKING:
    from strop.api import evaluate, load, rl, run, sample, sft, task


def __getattr__(name: str) -> Any:
    if name in __all__:
        from strop import api

        return getattr(api, name)
    raise AttributeError(f"module 'strop' has no attribute {name!r}")
