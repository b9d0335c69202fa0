"""Keys: what changes a result changes the key of its stage and of all that follow, and nothing else does."""

import json
import os
import time

import pytest
from safetensors.torch import save_file

from strop.errors import StropError
from strop.recipe.config import load_recipe
from strop.recipe.plan import make_plan

TASK = "class Mine:\n    name = 'mine'\n"
RECIPE = """\
model: {here}/model
stages:
  sft:
    kind: sft
    data: [{{data: {here}/rows.jsonl}}, {{task: arithmetic}}]
  rl:
    kind: rl
    task: {here}/mine.py:Mine
  other:
    kind: rl
    from: sft
evaluate:
  - {{task: gsm8k, data: {here}/gsm8k.jsonl}}
  - {{task: rewrite}}
"""


@pytest.fixture
def place(tmp_path, store):
    """A recipe and its inputs. The model has no usable weights: a plan needs none."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    save_file({}, tmp_path / "model/model.safetensors")
    for name, text in {"rows.jsonl": "{}\n", "gsm8k.jsonl": "{}\n", "mine.py": TASK}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(here=tmp_path))
    return tmp_path


def keys(place, *overrides) -> dict[str, str]:
    """The key of every stage, and of every evaluation as stage/index."""
    plan = make_plan(load_recipe(place / "mine.yaml", overrides))
    stages = {name: stage.artifact.key for name, stage in plan.stages.items()}
    return stages | {f"{e.stage}/{e.index}": e.artifact.key for e in plan.evals}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def of(*stages: str) -> set[str]:
    """Stages with both of their evaluations."""
    return {*stages, *(f"{stage}/{i}" for stage in stages for i in (0, 1))}


@pytest.mark.parametrize(
    "overrides, moved",
    [
        (["seed=1"], of("base", "sft", "rl", "other") - {"base"}),
        (["dtype=bfloat16"], of("base", "sft", "rl", "other") - {"base"}),
        (["threads=77"], of("base", "sft", "rl", "other") - {"base"}),
        (["sft.lr=0.5"], of("sft", "rl", "other")),
        (["sft.data.1.rows=5"], of("sft", "rl", "other")),
        (["sft.data.1.options.tiers=[5]"], of("sft", "rl", "other")),
        (["rl.steps=3"], of("rl")),
        (["rl.algorithm=reinforce"], of("rl")),
        (["rl.from=base"], of("rl")),
        (["other.from=rl"], of("other")),
        (["evaluate.1.n=7"], {f"{stage}/1" for stage in ("base", "sft", "rl", "other")}),
        (["evaluate.1.samples=7"], {f"{stage}/1" for stage in ("base", "sft", "rl", "other")}),
        # KL is measured on the evaluated tasks' prompts, up to their length
        (["evaluate.1.max_tokens=7"], of("sft", "rl", "other") | {"base/1"}),
        # what changes no result
        (["sft.save_seconds=0", "rl.save_seconds=99"], set()),
        (["name=another"], set()),
        (["sft.from=base", "rl.from=sft"], set()),
        (["rl.kl_coef=0", "rl.optimizer=adamw"], set()),  # defaults, spelled out
    ],
)
def test_a_setting_moves_the_keys_that_depend_on_it(place, overrides, moved):
    assert changed(keys(place), keys(place, *overrides)) == moved


@pytest.mark.parametrize(
    "file, moved",
    [
        ("rows.jsonl", of("sft", "rl", "other")),
        ("mine.py", of("rl")),
        ("gsm8k.jsonl", of("sft", "rl", "other") | {"base/0"}),
        ("model/config.json", of("base", "sft", "rl", "other")),
        ("model/chat_template.jinja", of("base", "sft", "rl", "other")),
        ("model/README.md", set()),
    ],
)
def test_an_edited_file_moves_the_keys_that_depend_on_it(place, file, moved):
    before = keys(place)
    with (place / file).open("a") as out:
        out.write("\n")
    assert changed(before, keys(place)) == moved


def test_a_touched_file_or_a_moved_model_changes_nothing(place):
    before = keys(place)
    os.utime(place / "rows.jsonl", (1, 1))
    (place / "model").rename(place / "elsewhere")
    assert changed(before, keys(place, f"model={place}/elsewhere")) == set()


def test_pretraining_text_and_the_names_of_generated_ones(place):
    recipe = "stages: {p: {kind: pretrain, text: TEXT, new: {hidden: 8, heads: 2}}}"
    found = []
    for text, content in ((f"{place}/a.txt", "one"), (f"{place}/a.txt", "two"), ("nano", ""), ("nano-words", "")):
        (place / "a.txt").write_text(content)
        (place / "mine.yaml").write_text(recipe.replace("TEXT", text))
        found.append(keys(place)["p"])
    assert len(set(found)) == 4


def test_two_runs_of_one_stage_share_it_whatever_their_names(place):
    first = keys(place)
    renamed = (place / "mine.yaml").read_text().replace("sft:", "tuned:").replace("from: sft", "from: tuned")
    (place / "mine.yaml").write_text(renamed)
    second = keys(place)
    assert second["tuned"] == first["sft"] and second["tuned/0"] == first["sft/0"] and second["rl"] == first["rl"]


def test_a_plan_is_quick_and_leaves_only_remembered_hashes(place, store, monkeypatch):
    keys(place)
    monkeypatch.setattr("strop.model.checkpoint.load_decoder", None)
    began = time.perf_counter()
    plan = make_plan(load_recipe(place / "mine.yaml"))
    assert time.perf_counter() - began < 0.5 and not plan.done
    assert [p.name for p in store.iterdir()] == ["hashes"]
    json.dumps(plan.recipe.model_dump(mode="json"))
    assert [(s.name, s.parent) for s in plan.stages.values()] == [
        ("base", None), ("sft", "base"), ("rl", "sft"), ("other", "sft")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "override, says",
    [
        ("sft.data.0.data=gone.jsonl", "gone.jsonl: no such file"),
        ("rl.task=gone.py:Mine", "gone.py: no such file"),
        ("evaluate.0.data=gone.jsonl", "gone.jsonl: no such file"),
        ("model=./gone", "gone: no such model directory"),
    ],
)
def test_a_missing_input_is_one_line(place, override, says):
    with pytest.raises(StropError, match=says) as raised:
        keys(place, override)
    assert "\n" not in str(raised.value)
