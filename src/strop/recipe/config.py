"""Recipes: YAML to typed configs. A mistake becomes one line with its place and the nearest right word."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strop.errors import StropError
from strop.evals.evaluate import EvalConfig
from strop.train.pretrain import PretrainConfig
from strop.train.rl import RLConfig
from strop.train.sft import SFTConfig

BUNDLED = Path(__file__).parent.parent / "recipes"


class Source(BaseModel):
    """Conversations to learn from: a task's demonstrations, or the rows of a file."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(None, description="demonstrations of this task's training prompts")
    options: dict = Field(default_factory=dict, description="the task's options")
    data: str | None = Field(None, description="a .jsonl or .parquet file with messages, or prompt and completion")
    rows: int | None = Field(None, gt=0, description="at most so many, from the first")


class PretrainStage(PretrainConfig):
    kind: Literal["pretrain"]
    from_: str | None = Field(None, alias="from", description="the stage to start from; the one before if not given")


class SFTStage(SFTConfig):
    kind: Literal["sft"]
    from_: str | None = Field(None, alias="from", description="the stage to start from; the one before if not given")
    data: list[Source] = Field(min_length=1)


class RLStage(RLConfig):
    kind: Literal["rl"]
    from_: str | None = Field(None, alias="from", description="the stage to start from; the one before if not given")


StageConfig = Annotated[PretrainStage | SFTStage | RLStage, Field(discriminator="kind")]


class Recipe(BaseModel):
    """A whole run: a model, stages, and what to measure after each."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("run", pattern=r"^[\w.-]+$")
    model: str | None = Field(None, description="strop-nano, a model directory or a hub id; none to start fresh")
    seed: int = Field(0, ge=0, lt=1_000_000)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 computes under autocast")
    threads: int | None = Field(None, gt=0, description="CPU threads; all this process may use if not given")
    stages: dict[str, StageConfig]
    evaluate: list[EvalConfig] = Field(default_factory=list)

    def parent(self, stage: str) -> str | None:
        """The stage that `stage` starts from: the named one, else the one before, else the model."""
        names = ["base", *self.stages] if self.model else list(self.stages)
        return self.stages[stage].from_ or next((a for a, b in zip(names, names[1:]) if b == stage), None)  # noqa: B905


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name or a YAML file by path, with `a.b=value` overrides applied.

    Raises StropError naming file, line and the nearest known key.
    """
    path = BUNDLED / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in BUNDLED.glob("*.yaml"))
        near = get_close_matches(str(name), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a path, or one of {', '.join(known)}"
        raise StropError(f"{name}: no such recipe; {hint}")
    text = path.read_text()
    try:
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise StropError(f"{path}:{line}: not YAML: {error.problem}") from error
    if not isinstance(tree, dict):
        raise StropError(f"{path}: a recipe is a mapping of keys to values")
    for override in overrides:
        apply_override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise StropError(explain(error, path, text)) from error
    return check(recipe, path)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a recipe's tree. A first word that is no key of a recipe names a stage."""
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise StropError(f"--set {override}: write it as key.key=value")
    parts = dotted.split(".")
    if parts[0] not in Recipe.model_fields:
        stages = tree.get("stages")
        if not isinstance(stages, dict) or parts[0] not in stages:
            known = [*Recipe.model_fields, *(stages if isinstance(stages, dict) else ())]
            raise StropError(f"--set {override}: no key or stage {parts[0]!r}; {nearest(parts[0], known)}")
        parts = ["stages", *parts]
    node: Any = tree
    for i, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = node[list_index(part, node, override)]
            continue
        if not isinstance(node.setdefault(part, {}), dict | list):
            raise StropError(f"--set {override}: {'.'.join(parts[: i + 1])} holds a value, not keys")
        node = node[part]
    last: Any = list_index(parts[-1], node, override) if isinstance(node, list) else parts[-1]
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise StropError(f"--set {override}: the value is not YAML") from error


def list_index(part: str, node: list, override: str) -> int:
    """The place a path component names in a list."""
    if not part.isdigit() or int(part) >= len(node):
        raise StropError(f"--set {override}: {part!r} is not a place in a list of {len(node)}")
    return int(part)


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that was meant."""
    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def explain(error: ValidationError, path: Path, text: str) -> str:
    """The first validation error as one line: file, line, key and mend."""
    first = error.errors()[0]
    # pydantic puts the stage's kind into the path; the user wrote no such key there.
    place = [p for i, p in enumerate(first["loc"]) if not (i == 2 and first["loc"][0] == "stages")]
    where = ".".join(str(p) for p in place)
    line = line_of(text, place)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key {place[-1]!r}; {nearest(str(place[-1]), known_keys(first['loc']))}"
        where = ".".join(str(p) for p in place[:-1])
    elif first["type"] == "missing":
        message = f"{place[-1]!r} is required"
        where = ".".join(str(p) for p in place[:-1])
    elif "input" in first and not isinstance(first["input"], dict | list):
        message += f", not {first['input']!r}"
    return f"{path}:{line}: {where + ': ' if where else ''}{message}"


def explain_field(error: ValidationError, model: type[BaseModel]) -> str:
    """The first validation error of settings that were given as keywords."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; {nearest(name, list(model.model_fields))}"
    return f"{name}: {first['msg']}, not {first.get('input')!r}"


def known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    models: dict[str, type[BaseModel]] = {"pretrain": PretrainStage, "sft": SFTStage, "rl": RLStage}
    model: type[BaseModel] = Recipe
    if loc[0] == "evaluate" and len(loc) > 2:
        model = EvalConfig
    elif loc[0] == "stages" and len(loc) > 3:
        model = models.get(str(loc[2]), Recipe)
        if len(loc) > 4:
            model = Source if loc[3] == "data" else type(model.model_fields[str(loc[3])].default) or Recipe
    return [field.alias or name for name, field in model.model_fields.items()]


def line_of(text: str, place: Sequence[int | str]) -> int:
    """The line on which a key path stands in YAML text; its nearest ancestor's where it is absent."""
    node = yaml.compose(text)
    line = 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def check(recipe: Recipe, path: Path) -> Recipe:
    """What types can't say: stage names and references. Raises StropError."""
    seen: list[str] = ["base"] if recipe.model else []
    for name, stage in recipe.stages.items():
        if name in Recipe.model_fields or name == "base":
            raise StropError(f"{path}: a stage can't be called {name!r}; that word is taken")
        if stage.from_ is not None and stage.from_ not in seen:
            hint = nearest(stage.from_, seen) if seen else "it is the first stage"
            raise StropError(f"{path}: stages.{name}.from: no earlier stage {stage.from_!r}; {hint}")
        fresh = isinstance(stage, PretrainStage) and stage.new is not None
        if not fresh and recipe.parent(name) is None:
            raise StropError(f"{path}: stages.{name} has no model to start from; set `model`")
        seen.append(name)
    return recipe
