"""The nouns hold what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.types import Author, Datum, Judged, Message, Prompt, Rollout, Sampling, Turn, Verdict, content_hash


def rollout() -> Rollout:
    turns = (Turn((1, 2), (3,), (-0.5,)), Turn((4,), (5, 6), (-0.1, -0.2)))
    return Rollout(Prompt.user("q"), turns, Sampling(), "stop", "a")


def test_prompt_id_is_its_content_alone():
    here, there = Prompt.user("2+2?", task="a", row=1, answer="4"), Prompt.user("2+2?", task="b", row=9)
    assert here.id == there.id
    assert here.id != Prompt.user("2+3?").id
    assert Prompt((Message("user", "x"),)).id != Prompt((Message("system", "x"),)).id


def test_message_as_dict_names_tool_calls_only_where_there_are_some():
    assert Message("user", "x").as_dict() == {"role": "user", "content": "x"}
    assert Message("assistant", "", ({"name": "f"},)).as_dict()["tool_calls"] == [{"name": "f"}]


def test_rollout_concatenates_its_turns():
    r = rollout()
    assert r.ids == [1, 2, 3, 4, 5, 6]
    assert r.authors == [Author.USER] * 2 + [Author.POLICY] + [Author.USER] + [Author.POLICY] * 2
    assert r.completion_ids == [i for i, a in zip(r.ids, r.authors, strict=True) if a is Author.POLICY]
    assert r.logprobs == [-0.5, -0.1, -0.2]


@pytest.mark.parametrize("correctness", [-0.01, 1.01, float("nan"), float("inf")])
def test_verdict_refuses_a_correctness_outside_0_and_1(correctness):
    with pytest.raises(ValueError, match="outside"):
        Verdict(correctness)


def test_verdict_is_either_judged_or_invalid():
    with pytest.raises(ValueError, match="not both"):
        Verdict(None)
    with pytest.raises(ValueError, match="not both"):
        Verdict(0.0, invalid="crashed")
    unjudged = Verdict.unjudged("crashed")
    assert unjudged.correctness is None and unjudged.invalid == "crashed"


def test_score_is_by_extraction_and_none_where_invalid():
    verdict = Verdict(0.0, parts={"strict": 0.0, "flexible": 1.0})
    assert [Judged(rollout(), verdict).score(e) for e in ("strict", "flexible", "other")] == [0.0, 1.0, 0.0]
    assert Judged(rollout(), Verdict(0.5)).score("flexible") == 0.5
    cut_short = Verdict(None, invalid="timed out", parts={"strict": 0.0})
    assert [Judged(rollout(), cut_short).score(e) for e in ("strict", "other")] == [None, None]


numbers = st.floats(-3, 3, width=32)


@given(st.lists(st.tuples(st.integers(0, 999), numbers), min_size=2, max_size=20), numbers)
def test_datum_shifts_every_field_with_its_target(pairs, scalar):
    tokens, weight = zip(*pairs, strict=True)
    datum = Datum.from_tokens(tokens, weight, group=3, twice=[2 * t for t in tokens], advantage=scalar)
    assert len(datum) == len(tokens) - 1 and datum.group == 3
    assert datum.ids.dtype == datum.targets.dtype == np.int64
    for t, (i, target) in enumerate(zip(datum.ids, datum.targets, strict=True)):
        assert (i, target) == (tokens[t], tokens[t + 1])
        assert datum.fields["weight"][t] == np.float32(weight[t + 1])
        assert datum.fields["twice"][t] == 2 * target
        assert datum.fields["advantage"][t] == np.float32(scalar)
    assert all(f.dtype == np.float32 for f in datum.fields.values())


@pytest.mark.parametrize("field", ["weight", "advantage"])
def test_datum_refuses_fields_of_another_length(field):
    with pytest.raises(ValueError):
        Datum.from_tokens([1, 2, 3], **{"weight": [1.0] * 3, field: [1.0, 1.0]})


def test_content_hash_is_stable_under_key_order_and_reads_dataclasses():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash(Sampling(seed=1)) == content_hash(Sampling(seed=1)) != content_hash(Sampling(seed=2))
