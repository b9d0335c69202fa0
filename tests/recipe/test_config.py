"""Recipes: every mistake is one line that says where it is and what was meant."""

import re

import pytest
import yaml

from strop.errors import StropError
from strop.recipe.config import BUNDLED, load_recipe

RECIPE = """\
name: mine
model: strop-nano
stages:
  sft:
    kind: sft
    data:
      - {task: arithmetic, rows: 400}
      - task: rewrite
    epochs: 3
  rl:
    kind: rl
    steps: 30
evaluate:
  - {task: arithmetic, n: 600}
  - task: rewrite
    n: 600
"""


@pytest.fixture
def load(tmp_path):
    """Load RECIPE with a piece of it replaced, or another text."""

    def load(old="", new="", *overrides, text=RECIPE):
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1) if old else text)
        return load_recipe(tmp_path / "mine.yaml", overrides)

    return load


def error(load, *args) -> str:
    """The one line that a mistake gives, directories left out."""
    with pytest.raises(StropError) as raised:
        load(*args)
    assert "\n" not in str(raised.value)
    return re.sub(r"^/\S*/", "", str(raised.value))


@pytest.mark.parametrize("name", sorted(p.stem for p in BUNDLED.glob("*.yaml")))
def test_bundled_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.evaluate
    assert load_recipe(BUNDLED / f"{name}.yaml") == recipe


def test_quickstart_is_as_the_readme_says():
    recipe = load_recipe("quickstart")
    assert list(recipe.stages) == ["sft", "rl"] and recipe.model == "strop-nano"
    assert [recipe.parent(name) for name in recipe.stages] == ["base", "sft"]


@pytest.mark.parametrize(
    "old, new, says",
    [
        # unknown keys, level by level
        ("model:", "modle:", "mine.yaml:2: unknown key 'modle'; did you mean 'model'?"),
        ("    epochs", "    epoch", "mine.yaml:9: stages.sft: unknown key 'epoch'; did you mean 'epochs'?"),
        ("    steps", "    stepz", "mine.yaml:12: stages.rl: unknown key 'stepz'; did you mean 'steps'?"),
        ("    steps", "    epochs", "mine.yaml:12: stages.rl: unknown key 'epochs'; "),
        ("rows: 400", "row: 400", "mine.yaml:7: stages.sft.data.0: unknown key 'row'; did you mean 'rows'?"),
        ("- task: rewrite\n    e", "- tusk: rewrite\n    e", "mine.yaml:8: stages.sft.data.1: unknown key 'tusk';"),
        ("    n: 600", "    m: 600", "mine.yaml:16: evaluate.1: unknown key 'm';"),
        ("n: 600}", "smaples: 6}", "mine.yaml:14: evaluate.0: unknown key 'smaples'; did you mean 'samples'?"),
        ("    steps", "    form: sft\n    steps", "mine.yaml:12: stages.rl: unknown key 'form'; did you mean 'from'?"),
        # wrong types and values
        ("epochs: 3", "epochs: many", "mine.yaml:9: stages.sft.epochs: Input should be a valid integer"),
        ("epochs: 3", "epochs: -1", "mine.yaml:9: stages.sft.epochs: Input should be greater than or equal to 0"),
        ("epochs: 3", "epochs: 2.5", "mine.yaml:9: stages.sft.epochs: Input should be a valid integer"),
        ("epochs: 3", "lr: 1e-3.0", "mine.yaml:9: stages.sft.lr: Input should be a valid number"),
        ("steps: 30", "algorithm: ppo", "mine.yaml:12: stages.rl.algorithm: Input should be 'grpo' or 'reinforce'"),
        ("rows: 400", "rows: 0", "mine.yaml:7: stages.sft.data.0.rows: Input should be greater than 0"),
        ("n: 600}", "n: []}", "mine.yaml:14: evaluate.0.n: Input should be a valid integer"),
        ("name: mine", "name: a/b", "mine.yaml:1: name: String should match pattern"),
        ("name: mine", "seed: 1000000", "mine.yaml:1: seed: Input should be less than 1000000"),
        ("name: mine", "dtype: float16", "mine.yaml:1: dtype: Input should be 'float32' or 'bfloat16'"),
        ("  sft:\n    kind: sft\n    data:", "  sft:\n    kind: sft\n    dat:", "mine.yaml:"),
        ("- task: rewrite\n    n", "- n", "mine.yaml:15: evaluate.1: 'task' is required"),
        # kinds
        ("kind: rl", "kind: dpo", "mine.yaml:10: stages.rl: Input tag 'dpo' found using 'kind'"),
        ("    kind: rl\n", "", "mine.yaml:10: stages.rl: 'kind' is required"),
        ("  rl:", "  7:", "mine.yaml:10: stages.7: Input should be a valid string, not 7"),
        ("    kind: rl\n    steps: 30", "    - 3", "mine.yaml:10: stages.rl: "),
        # references and names
        ("steps: 30", "from: stf", "mine.yaml:12: stages.rl.from: no earlier stage 'stf'; did you mean 'sft'?"),
        ("steps: 30", "from: rl", "mine.yaml:12: stages.rl.from: no earlier stage 'rl'; there are base, sft"),
        ("epochs: 3", "from: rl", "mine.yaml:9: stages.sft.from: no earlier stage 'rl'; there are base"),
        ("model: strop-nano", "", "mine.yaml:4: stages.sft: there is no model to start from; set `model`"),
        ("  rl:", "  base:", "mine.yaml:10: stages.base: a stage can't be called so; that word is taken"),
        ("  rl:", "  seed:", "mine.yaml:10: stages.seed: a stage can't be called so; that word is taken"),
        # not YAML, or not a mapping
        ("epochs: 3", "epochs: [3", "mine.yaml:10: not YAML: "),
        ("  rl:", "\trl:", "mine.yaml:10: not YAML: found character '\\t' that cannot start any token"),
        ("name: mine", "name: \x00", "mine.yaml:1: not YAML: "),
        ("name: mine", "name: 2026-02-31", "mine.yaml:1: not YAML: "),
        (RECIPE, "- a\n- b\n", "mine.yaml: a recipe is a mapping of keys to values"),
        (RECIPE, "", "mine.yaml: a recipe is a mapping of keys to values"),
        (RECIPE, "stages: {}\n", "mine.yaml:1: stages: nothing to do: there is neither"),
        (RECIPE, "model: a\nstages: []\n", "mine.yaml:2: stages: Input should be a valid dictionary"),
        (RECIPE, "model: a\n", "mine.yaml:1: 'stages' is required"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_mend(load, old, new, says):
    assert error(load, old, new).startswith(says)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\n")
    assert error(load_recipe, tmp_path / "mine.yaml").startswith("mine.yaml:1: not YAML: ")


@pytest.mark.parametrize(
    "name, says", [("quikstart", "did you mean 'quickstart'?"), ("zzz.yaml", "there are nano-base, quickstart")]
)
def test_a_missing_recipe_names_the_nearest(name, says):
    assert error(load_recipe, name) == f"{name}: no such recipe; {says}"


@pytest.mark.parametrize(
    "override, reads",
    [
        ("seed=7", lambda r: r.seed == 7),
        ("model=some/dir", lambda r: r.model == "some/dir"),
        ("rl.steps=4", lambda r: r.stages["rl"].steps == 4),
        ("stages.rl.steps=4", lambda r: r.stages["rl"].steps == 4),
        ("rl.lr=1.5e-4", lambda r: r.stages["rl"].lr == 1.5e-4),
        ("rl.lr=1e-4", lambda r: r.stages["rl"].lr == 1e-4),  # YAML 1.1 reads 1e-4 as text
        ("rl.options.tiers=[2, 3]", lambda r: r.stages["rl"].options == {"tiers": [2, 3]}),
        ("rl.data=", lambda r: r.stages["rl"].data is None),
        ("rl.data=a=b.jsonl", lambda r: r.stages["rl"].data == "a=b.jsonl"),
        ("sft.data.1.rows=5", lambda r: r.stages["sft"].data[1].rows == 5),
        ("evaluate.1.n=9", lambda r: [e.n for e in r.evaluate] == [600, 9]),
        ("evaluate=[]", lambda r: r.evaluate == []),
        ("sft.from=base", lambda r: r.stages["sft"].from_ == "base"),
    ],
)
def test_overrides(load, override, reads):
    assert reads(load("", "", override))


@pytest.mark.parametrize(
    "override, says",
    [
        ("seed", "--set seed: write it as key.key=value"),
        ("=3", "--set =3: write it as key.key=value"),
        ("rl..steps=3", "--set rl..steps=3: write it as key.key=value"),
        ("sede=3", "--set sede=3: no key or stage 'sede'; did you mean 'seed'?"),
        ("sf.epochs=3", "--set sf.epochs=3: no key or stage 'sf'; did you mean 'sft'?"),
        ("seed.x=3", "mine.yaml:1: seed: Input should be a valid integer"),
        ("name.x=3", "--set name.x=3: name has no 'x'"),
        ("evaluate.7.n=3", "--set evaluate.7.n=3: evaluate has no '7'"),
        ("evaluate.x.n=3", "--set evaluate.x.n=3: evaluate has no 'x'"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("rl.stepz=3", "mine.yaml:10: stages.rl: unknown key 'stepz'; did you mean 'steps'?"),
        ("rl.steps=x", "mine.yaml:12: stages.rl.steps: Input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_one_line(load, override, says):
    assert error(load, "", "", override).startswith(says)


def test_a_recipe_survives_its_own_dump(load):
    recipe = load("steps: 30", "from: base")
    dumped = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True))
    assert load(text=dumped) == recipe and re.search(r"from: base", dumped)
