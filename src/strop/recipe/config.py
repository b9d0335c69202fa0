"""Recipes: YAML to typed configs. A mistake becomes one line with its place and the nearest right word."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from strop.errors import StropError
from strop.evals.evaluate import EvalConfig
from strop.train.pretrain import PretrainConfig
from strop.train.rl import RLConfig
from strop.train.sft import SFTConfig

BUNDLED = Path(__file__).parent.parent / "recipes"
From = Annotated[str | None, Field(alias="from", description="the stage to start from; else the one before")]


class Source(BaseModel, extra="forbid"):
    """Conversations to learn from: a task's demonstrations, or the rows of a file."""

    task: str | None = Field(None, description="demonstrations of this task's training prompts")
    options: dict = Field(default_factory=dict, description="the task's options")
    data: str | None = Field(None, description="rows with messages, or prompt and completion; or the task's file")
    rows: int | None = Field(None, gt=0, description="at most so many, from the first")


class PretrainStage(PretrainConfig):
    kind: Literal["pretrain"]
    from_: From = None


class SFTStage(SFTConfig):
    kind: Literal["sft"]
    from_: From = None
    data: list[Source] = Field(min_length=1)


class RLStage(RLConfig):
    kind: Literal["rl"]
    from_: From = None


StageConfig = PretrainStage | SFTStage | RLStage


class Recipe(BaseModel, extra="forbid"):
    """A whole run: a model, stages, and what to measure after each."""

    name: str = Field("run", pattern=r"^[\w.-]+$")
    model: str | None = Field(None, description="strop-nano, a model directory or a hub id; none to start fresh")
    seed: int = Field(0, ge=0, lt=1_000_000)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 computes under autocast")
    threads: int | None = Field(None, gt=0, description="CPU threads; all this process may use if not given")
    stages: dict[str, Annotated[StageConfig, Field(discriminator="kind")]]
    evaluate: list[EvalConfig] = Field(default_factory=list)

    def parent(self, stage: str) -> str | None:
        """The stage that `stage` starts from: the named one, else the one before, else the model as `base`."""
        names = ["base" if self.model else None, *self.stages]
        return self.stages[stage].from_ or names[names.index(stage) - 1]


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A bundled recipe by name or a YAML file by path, with `a.b=value` overrides. A StropError names the line."""
    path = bundled if (bundled := BUNDLED / f"{name}.yaml").exists() else Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in BUNDLED.glob("*.yaml"))
        raise StropError(f"{name}: no such recipe; {nearest(str(name), known)}")
    try:
        tree = yaml.safe_load(text := path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or no such date
        mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", error)).splitlines()[0]
        raise StropError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from error
    if not isinstance(tree, dict):
        raise StropError(f"{path}: a recipe is a mapping of keys to values")
    for override in overrides:
        apply_override(tree, override)
    try:
        return check(Recipe.model_validate(tree), path, text)
    except ValidationError as error:
        raise StropError(explain(error, Recipe, path, text)) from error


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a recipe's tree. A first word that is no key of a recipe names a stage."""
    dotted, equals, value = override.partition("=")
    parts = dotted.split(".")
    stages: dict[str, Any] = tree["stages"] if isinstance(tree.get("stages"), dict) else {}
    if not equals or not all(parts):
        raise StropError(f"--set {override}: write it as key.key=value")
    if parts[0] in stages:
        parts = ["stages", *parts]
    elif parts[0] not in Recipe.model_fields:
        known = [*Recipe.model_fields, *stages]
        raise StropError(f"--set {override}: no key or stage {parts[0]!r}; {nearest(parts[0], known)}")
    node: Any = tree
    for i, part in enumerate(parts):
        place: Any = int(part) if isinstance(node, list) and part.isdigit() else part
        if not isinstance(node, dict) and not (isinstance(node, list) and place in range(len(node))):
            raise StropError(f"--set {override}: {'.'.join(parts[:i])} has no {part!r}")
        if i == len(parts) - 1:
            try:
                node[place] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise StropError(f"--set {override}: the value is not YAML") from error
        elif isinstance(node, dict) and node.get(place) is None:
            node[place] = {}
        node = node[place]


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that was meant."""
    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel], path: Path | str, text: str = "") -> str:
    """The first validation error as one line: file, line, key and mend."""
    first = error.errors()[0]
    loc, message = first["loc"], first["msg"]
    # pydantic puts the stage's kind into the path; the user wrote no such key there.
    place = [p for i, p in enumerate(loc) if not (i == 2 and loc[0] == "stages")]
    *above, last = map(str, place)
    where = ".".join([*above, last])
    if first["type"] == "missing":
        where, message = ".".join(above), f"{last!r} is required"
    elif first["type"] == "extra_forbidden":
        where, message = ".".join(above), f"unknown key {last!r}; {nearest(last, known_keys(model, loc))}"
    elif first["type"] == "union_tag_not_found":
        message = f"{first['ctx']['discriminator']} is required"
    elif not isinstance(first["input"], dict | list):
        message += f", not {first['input']!r}"
    line = f":{line_of(text, place)}" if text else ""
    return f"{path}{line}: {where + ': ' if where else ''}{message}"


def known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found: follow its path through the models' fields."""
    models = [model]
    for i, part in enumerate(loc[:-1]):
        if i == 1 and loc[0] == "stages":
            continue  # the stage's name; its kind comes next
        if len(models) > 1:
            models = [m for m in models if m.__name__.lower() == f"{part}stage"] or models
        elif part in models[0].model_fields:
            models = models_in(models[0].model_fields[str(part)].annotation) or models
    return [field.alias or name for name, field in models[0].model_fields.items()]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in models_in(a)]


def line_of(text: str, place: Sequence[int | str]) -> int:
    """The line on which a key path stands in YAML text; its nearest ancestor's where it is absent."""
    node, line = yaml.compose(text), 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next(((k, v) for k, v in node.value if k.value == str(part)), (None, None))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            key = node = node.value[part]
        else:
            break
        line = key.start_mark.line + 1 if key else line
    return line


def check(recipe: Recipe, path: Path, text: str) -> Recipe:
    """What types can't say: stage names and references. Raises StropError."""

    def wrong(message: str, *place: str) -> StropError:
        return StropError(f"{path}:{line_of(text, place)}: {'.'.join(place)}: {message}")

    seen: list[str] = ["base"] if recipe.model else []
    if not seen and not recipe.stages:
        raise wrong("nothing to do: there is neither a stage nor a `model`", "stages")
    for name, stage in recipe.stages.items():
        if name in Recipe.model_fields or name == "base":
            raise wrong("a stage can't be called so; that word is taken", "stages", name)
        if stage.from_ is not None and stage.from_ not in seen:
            hint = nearest(stage.from_, seen) if seen else "it is the first stage"
            raise wrong(f"no earlier stage {stage.from_!r}; {hint}", "stages", name, "from")
        if recipe.parent(name) is None and not (isinstance(stage, PretrainStage) and stage.new):
            raise wrong("there is no model to start from; set `model`", "stages", name)
        seen.append(name)
    return recipe
