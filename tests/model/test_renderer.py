"""Messages to tokens: who wrote what, where a turn stops, and which templates can't be trusted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from strop.errors import StropError
from strop.model.renderer import Renderer
from strop.types import Author, Message

NAMES = ("plain", "chatml", "chatml-marked")
TALK = [
    Message("system", "Be brief: 3 words."),
    Message("user", "What is 12 + 34?"),
    Message("assistant", "The answer is 46."),
    Message("user", " And 7 more?\n"),
    Message("assistant", "It is 53"),
]


@pytest.fixture(scope="module")
def renderers(make_tokenizer):
    return {name: Renderer(make_tokenizer(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def renderer(request, make_tokenizer):
    return Renderer(make_tokenizer(request.param))


def spans(renderer, ids, authors, author):
    """The text of each unbroken run of tokens by one author."""
    runs, previous = [], None
    for token, who in zip(ids, authors, strict=True):
        if who is author:
            runs = runs if previous is author else [*runs, []]
            runs[-1].append(token)
        previous = who
    return [renderer.tokenizer.decode(run) for run in runs]


def test_the_policy_wrote_its_turns_and_their_stop_tokens_alone(renderer):
    ids, authors = renderer.render(TALK)
    plain = renderer.without_template
    stop, lead = ("<|endoftext|>", " ") if plain else ("<|im_end|>", "")
    said = [lead + m.content + stop for m in TALK if m.role == "assistant"]
    assert spans(renderer, ids, authors, Author.POLICY) == said
    assert renderer.tokenizer.decode(ids) == renderer.text(TALK)
    assert authors[-1] is Author.USER and renderer.pieces(ids)[-1] == "\n"  # after the stop: not learnt
    assert set(authors) == {Author.USER, Author.POLICY}


@pytest.mark.parametrize("turn", [2, 4])
def test_a_sampled_prompt_is_a_prefix_of_the_trained_row(renderer, turn):
    prompt = renderer.prompt(TALK[:turn])
    ids, authors = renderer.render(TALK)
    assert ids[: len(prompt)] == prompt
    assert authors[len(prompt) - 1 : len(prompt) + 1] == [Author.USER, Author.POLICY]
    assert renderer.tokenizer.decode(prompt) == renderer.text(TALK[:turn], prompt=True)


content = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12).map(lambda s: f"a{s}b")


@given(system=content, turns=st.lists(st.tuples(content, content), min_size=1, max_size=3))
def test_any_conversation_keeps_its_text_and_its_prefixes(renderers, system, turns):
    talk = [Message("system", system)]
    for question, answer in turns:
        talk += [Message("user", question), Message("assistant", answer)]
    for renderer in renderers.values():
        ids, authors = renderer.render(talk)
        assert len(ids) == len(authors) and renderer.tokenizer.decode(ids) == renderer.text(talk)
        for end in range(2, len(talk), 2):
            prompt = renderer.prompt(talk[:end])
            assert ids[: len(prompt)] == prompt
        stops = [i for i, a in zip(ids, authors, strict=True) if a is Author.POLICY and i in renderer.stops]
        assert len(stops) == len(turns)


def test_generation_marks_change_nothing(renderers):
    assert renderers["chatml"].render(TALK) == renderers["chatml-marked"].render(TALK)
    assert renderers["chatml"].template_hash != renderers["chatml-marked"].template_hash


def test_a_system_message_survives(renderer):
    assert "Be brief: 3 words." in renderer.tokenizer.decode(renderer.prompt(TALK[:2]))


def test_a_last_user_message_is_rendered_and_not_learnt(renderer):
    ids, authors = renderer.render(TALK[:2])
    assert "12 + 34" in renderer.decode(ids) and set(authors) == {Author.USER}


@pytest.mark.parametrize("start", [3, 5])
def test_extend_appends_what_rendering_at_once_gives(renderer, start):
    """A rollout ends with its stop token; the bridge takes it to the next generation prompt."""
    new = [Message("user", "More?"), Message("user", "Now.")]
    ids, authors = renderer.render(TALK[:start])
    last = max(i for i, a in enumerate(authors) if a is Author.POLICY)
    extended = ids[: last + 1] + renderer.extend(TALK[:start], new)
    assert renderer.tokenizer.decode(extended) == renderer.text([*TALK[:start], *new], prompt=True)
    assert extended == renderer.prompt([*TALK[:start], *new])


def test_extend_needs_a_stop_token(make_tokenizer):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    with pytest.raises(StropError, match="stop token"):
        Renderer(make_tokenizer(template)).extend(TALK[:3], [Message("user", "More?")])


THINKING = (  # Qwen3's manner: an empty thinking part before the last answer
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template, stops", [("plain", [0]), ("chatml", [0, 2]), (THINKING, [0, 2])])
@pytest.mark.parametrize("registered", [True, False])
def test_stops_are_eos_and_what_the_template_ends_a_turn_with(make_tokenizer, template, stops, registered):
    tokenizer = make_tokenizer(template)
    if not registered:  # special in tokenizer.json, but not in the list of special tokens
        chat_template = tokenizer.chat_template
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
        tokenizer.chat_template = chat_template
        assert tokenizer.all_special_ids == [0]
    assert Renderer(tokenizer).stops == tuple(stops)


def test_stops_declared_by_the_checkpoint(random_checkpoint, tmp_path):
    source = random_checkpoint("llama", template="chatml")
    Renderer.load(source).tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 11]}))
    assert Renderer.load(tmp_path).stops == (0, 2, 7, 9, 11)


def test_loading_gives_the_same_template_and_ids(random_checkpoint, make_tokenizer):
    loaded = Renderer.load(random_checkpoint("llama", template="chatml"))
    made = Renderer(make_tokenizer("chatml"))
    assert not loaded.without_template and loaded.template_hash == made.template_hash
    assert loaded.render(TALK) == made.render(TALK)


DROPS = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
REWRITES = (  # earlier answers lose their thinking
    "{% for m in messages %}{{ m.role }}: "
    "{% if not loop.last and m.role == 'assistant' %}(earlier) {% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    "template, says",
    [
        (DROPS, "drops the content of a 'system' message"),
        (REWRITES, "rewrites earlier turns"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ raise_exception('two\nlines') }}", "refuses these roles"),
        ("{{ messages[0].missing.deeper }}", "refuses these roles"),
    ],
)
def test_a_template_that_loses_or_changes_turns_is_refused(make_tokenizer, template, says):
    with pytest.raises(StropError, match=says) as raised:
        Renderer(make_tokenizer(template)).render(TALK)
    assert "\n" not in str(raised.value)


def test_the_plain_template_refuses_a_role_it_does_not_know(tiny_tokenizer):
    with pytest.raises(StropError, match="no role tool"):
        Renderer(tiny_tokenizer).render([Message("tool", "3")])


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    with pytest.raises(StropError, match="no eos_token"):
        Renderer(tiny_tokenizer)


@pytest.mark.parametrize(
    "name, text", [("generation_config.json", "{"), ("config.json", "[]"), ("tokenizer.json", "{}")]
)
def test_a_broken_directory_gives_one_line(random_checkpoint, tmp_path, name, text):
    Renderer.load(random_checkpoint("llama")).tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(StropError, match=str(tmp_path)) as raised:
        Renderer.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_empty_directory_has_no_tokenizer(tmp_path):
    with pytest.raises(StropError, match="no usable tokenizer"):
        Renderer.load(tmp_path)
