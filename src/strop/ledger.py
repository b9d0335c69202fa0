"""What things cost. Ledgers add; a budget caps any of their entries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Ledger:
    """Cost of a query, step or stage. `cached_tokens` came from a fork's prompt, `prompt_tokens` were run; `flops` is 2
    per parameter and token forward, 6 in training, attention included (Kaplan et al. 2020, section 2.1)."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    verifier_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    dollars: float = 0.0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __radd__(self, other: int | Ledger) -> Ledger:
        return self if isinstance(other, int) else other + self  # so that sum() works

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """A cap on any entry of a ledger; None leaves that entry free."""

    generated_tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    calls: int | None = None
    dollars: float | None = None

    def exceeded(self, spent: Ledger) -> str | None:
        """The name of the first capped entry that `spent` has reached, else None."""
        caps = {name: cap for name, cap in asdict(self).items() if cap is not None}
        return next((name for name, cap in caps.items() if getattr(spent, name) >= cap), None)
