"""Ledgers add, budgets cap."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.ledger import Budget, Ledger

counts = st.integers(0, 10**9)
ledgers = st.builds(Ledger, **{f.name: counts for f in fields(Ledger)})


@given(ledgers, ledgers, ledgers)
def test_ledgers_add_entry_by_entry_in_any_order(a, b, c):
    total = sum([a, b, c])
    assert total == (c + a) + b
    for f in fields(Ledger):
        assert getattr(total, f.name) == sum(getattr(x, f.name) for x in (a, b, c))


@given(ledgers)
def test_an_empty_ledger_changes_nothing_and_a_dict_gives_it_back(a):
    assert a + Ledger() == a == Ledger(**a.as_dict())
    assert sum([]) + a == a


@pytest.mark.parametrize("name", [f.name for f in fields(Budget)])
def test_a_budget_is_spent_once_its_cap_is_reached(name):
    budget = Budget(**{name: 10})
    assert budget.exceeded(Ledger(**{name: 9})) is None
    assert budget.exceeded(Ledger(**{name: 10})) == name
    others = {f.name: 99 for f in fields(Budget) if f.name != name}
    assert budget.exceeded(Ledger(**others)) is None


def test_a_budget_of_nothing_is_spent_at_once_and_no_budget_never():
    assert Budget(calls=0).exceeded(Ledger()) == "calls"
    assert Budget().exceeded(Ledger(flops=1e30, calls=10**9)) is None
