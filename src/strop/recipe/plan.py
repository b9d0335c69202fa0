"""From a recipe to its artifacts: the key of every stage and evaluation, and what is still to do."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.model.checkpoint import locate
from strop.recipe.config import Recipe, StageConfig
from strop.recipe.machine import Machine
from strop.recipe.store import Artifact, directory_hash, file_hash
from strop.types import content_hash

# A stage's own version: raised when its results change for the same inputs and config.
VERSIONS = {"base": 1, "pretrain": 1, "sft": 1, "rl": 1, "eval": 1}
NOT_KEYED = {"save_seconds", "from_"}  # how often a stage saves, and its parent's name, change no result


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its place in the store. `base` has no config: it is the model that the recipe names."""

    name: str
    kind: str
    parent: str | None
    config: StageConfig | None
    artifact: Artifact
    model: Path  # where the finished model lies

    @property
    def done(self) -> bool:
        return self.kind == "base" or self.artifact.done


@dataclass(frozen=True)
class PlannedEval:
    """An evaluation of a stage's model; `index` says which of the recipe's it is."""

    stage: str
    index: int
    artifact: Artifact


@dataclass(frozen=True)
class Plan:
    """All the work of a recipe, in order."""

    recipe: Recipe
    machine: Machine
    stages: dict[str, PlannedStage]
    evals: list[PlannedEval]

    @property
    def done(self) -> bool:
        return all(s.done for s in self.stages.values()) and all(e.artifact.done for e in self.evals)


def make_plan(recipe: Recipe) -> Plan:
    """Hash the inputs of every stage. Loads no model and runs nothing."""
    common = [recipe.seed, asdict(machine := Machine.of(recipe))]
    probe = with_file_hashes([e.model_dump(include={"task", "data", "options", "max_tokens"}) for e in recipe.evaluate])
    stages: dict[str, PlannedStage] = {}
    if recipe.model is not None:
        key = content_hash([VERSIONS["base"], directory_hash(directory := locate(recipe.model))])
        stages["base"] = PlannedStage("base", "base", None, None, Artifact("base", key), directory)
    for name, config in recipe.stages.items():
        parent = recipe.parent(name)
        inputs = [config.kind, VERSIONS[config.kind], stages[parent].artifact.key if parent else None, probe, *common]
        settings = with_file_hashes(config.model_dump(mode="json", exclude=NOT_KEYED))
        artifact = Artifact(config.kind, content_hash([*inputs, settings]))
        stages[name] = PlannedStage(name, config.kind, parent, config, artifact, artifact.path / "model")
    evals = []
    for stage in stages.values():
        for i, measure in enumerate(recipe.evaluate):
            settings = with_file_hashes(measure.model_dump(mode="json"))
            key = content_hash([VERSIONS["eval"], stage.artifact.key, settings, *common])
            evals.append(PlannedEval(stage.name, i, Artifact("eval", key)))
    return Plan(recipe, machine, stages, evals)


def with_file_hashes(tree: Any) -> Any:
    """A config with the content's hash beside every file that it names, so that an edited file is a new input."""
    if isinstance(tree, list):
        return [with_file_hashes(node) for node in tree]
    if not isinstance(tree, dict):
        return tree
    out = {key: with_file_hashes(value) for key, value in tree.items()}
    return {**out, "files": [file_hash(Path(path).expanduser()) for path in _files(tree)]}


def _files(tree: dict[str, Any]) -> Iterator[str]:
    """What stands under `data` or `text`, and a task given as file.py:Class."""
    for key, value in tree.items():
        if isinstance(value, str) and (key == "data" or (key == "text" and "." in value)):
            yield value
        elif isinstance(value, str) and key == "task" and ".py:" in value:
            yield value.rpartition(":")[0]
