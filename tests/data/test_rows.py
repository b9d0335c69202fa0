"""Rows from files: whole, in order, and with file and line in every complaint."""

import json

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.rows import conversation, read_rows
from strop.errors import StropError

ROWS = [{"question": "1 + 1?", "answer": "2", "n": 1}, {"question": "naïve “quotes”", "answer": "\u2028", "n": 2}]
values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
plain_rows = st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=5)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("ends", ["\n", "\r\n", ""])
def test_jsonl_rows_come_back_whole(tmp_path, ascii_only, ends):
    text = (ends or "\n").join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS) + ends
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8", newline="")
    assert read_rows(tmp_path / "rows.jsonl", ("question", "answer")) == ROWS


@given(rows=plain_rows)
def test_whatever_json_writes_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", "surrogatepass")
    assert read_rows(path) == rows


def test_a_line_separator_inside_a_string_is_no_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\u2028two\u0085three"}\n{"text": 2}\n{bad\n', encoding="utf-8")
    with pytest.raises(StropError, match="rows.jsonl:3: not JSON"):
        read_rows(path)


def test_parquet_rows_with_lists_of_messages(tmp_path):
    path = tmp_path / "rows.parquet"
    duckdb.sql("select 'q' as question, [{'role': 'user', 'content': 'c'}] as messages, 3 as n").write_parquet(
        str(path)
    )
    assert read_rows(path) == [{"question": "q", "messages": [{"role": "user", "content": "c"}], "n": 3}]
    with pytest.raises(StropError, match=r"rows.parquet:1: no column 'answer'; the row has question, messages, n$"):
        read_rows(path, ("question", "answer"))


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"a": 1}\n{"a": 2\n', r"rows.jsonl:2: not JSON: Expecting ',' delimiter at column \d+$"),
        (b'{"a": 1}\n\n{"a": 2}\n', "rows.jsonl:2: not JSON: Expecting value"),
        (b'{"a": 1}\n[1, 2]\n', "rows.jsonl:2: a row must be a JSON object, not list$"),
        (b'"text"\n', "rows.jsonl:1: a row must be a JSON object, not str$"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "rows.jsonl:2: not UTF-8: invalid start byte$"),
        (b'{"b": 1}\n', "rows.jsonl:1: no column 'a'; the row has b$"),
        (b'{"a": 1}\n{"b": 1, "c": 2}\n', "rows.jsonl:2: no column 'a'; the row has b, c$"),
        (b"", "rows.jsonl: holds no rows$"),
        (None, "rows.jsonl: no such file$"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, content, says):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(StropError, match=says) as raised:
        read_rows(tmp_path / "rows.jsonl", ("a",))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 is not enough", b'{"a": 1}\n'])
def test_a_broken_parquet_file_is_one_line(tmp_path, content):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(StropError, match="rows.parquet: unreadable Parquet: ") as raised:
        read_rows(tmp_path / "rows.parquet")
    assert "\n" not in str(raised.value)


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED, SAID], "id": 7},
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": [ASKED], "completion": "a"},
    ],
)
def test_a_conversation_in_every_form(row):
    assert [(m.role, m.content) for m in conversation(row, "here")] == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "row, says",
    [
        ({"text": "q"}, "needs `messages`, or `prompt` and `completion`; it has text"),
        ({"prompt": "q"}, "needs `messages`, or `prompt` and `completion`; it has prompt"),
        ({"messages": [ASKED]}, "needs an assistant message"),
        ({"messages": []}, "needs an assistant message"),
        ({"prompt": "q", "completion": None}, "needs an assistant message"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "and text as content"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "every message needs `role` and `content`"),
        ({"messages": ["q", "a"]}, "every message needs `role` and `content`"),
        ({"messages": None}, "every message needs `role` and `content`"),
        ({"prompt": 3, "completion": "a"}, "every message needs `role` and `content`"),
    ],
)
def test_what_is_no_conversation(row, says):
    with pytest.raises(StropError) as raised:
        conversation(row, "rows.jsonl:4")
    assert str(raised.value).startswith("rows.jsonl:4: ") and says in str(raised.value)
