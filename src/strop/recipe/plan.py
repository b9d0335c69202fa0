"""From a recipe to its artifacts: the key of every stage and evaluation, and what is still to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.model.checkpoint import locate
from strop.recipe.config import PretrainStage, Recipe, RLStage, SFTStage
from strop.recipe.machine import Machine
from strop.recipe.store import Artifact, directory_hash, file_hash
from strop.types import content_hash

# A stage's own version: raised when its results change for the same inputs and config.
VERSIONS = {"base": 1, "pretrain": 1, "sft": 1, "rl": 1, "eval": 1}
KL_PROMPTS = 64  # the fixed prompts that KL is measured on, spread over the evaluated tasks' dev splits

# How often a running stage saves, and how much it takes at once, change no result beyond rounding.
NOT_KEYED = {"save_seconds"}


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its place in the store. `base` has no config: it is the model the recipe names."""

    name: str
    kind: str
    parent: str | None
    config: PretrainStage | SFTStage | RLStage | None
    artifact: Artifact
    model: Path | None  # where the finished model lies; None for a stage without one

    @property
    def done(self) -> bool:
        return self.kind == "base" or self.artifact.done


@dataclass(frozen=True)
class PlannedEval:
    stage: str
    index: int  # which of the recipe's evaluations
    artifact: Artifact


@dataclass(frozen=True)
class Plan:
    """All the work of a recipe, in order."""

    recipe: Recipe
    machine: Machine
    stages: dict[str, PlannedStage]
    evals: list[PlannedEval]

    @property
    def todo(self) -> list[PlannedStage | PlannedEval]:
        """What a run would have to do."""
        out: list[PlannedStage | PlannedEval] = [s for s in self.stages.values() if not s.done]
        return out + [e for e in self.evals if not e.artifact.done]

    @property
    def final(self) -> PlannedStage:
        """The stage whose model is the run's result."""
        return list(self.stages.values())[-1]


def make_plan(recipe: Recipe) -> Plan:
    """Hash the inputs and look each key up in the store. Loads no torch and runs nothing."""
    machine = Machine.of(recipe)
    stages: dict[str, PlannedStage] = {}
    if recipe.model is not None:
        directory = locate(recipe.model)
        key = content_hash(["base", VERSIONS["base"], directory_hash(directory)])
        stages["base"] = PlannedStage("base", "base", None, None, Artifact("base", key), directory)
    for name, config in recipe.stages.items():
        parent = recipe.parent(name)
        inputs = {
            "kind": config.kind,
            "version": VERSIONS[config.kind],
            "parent": stages[parent].artifact.key if parent else None,
            "config": with_file_hashes(config.model_dump(mode="json", exclude=NOT_KEYED | {"from_"})),
            "probe": with_file_hashes([e.model_dump(include={"task", "data", "options"}) for e in recipe.evaluate]),
            "seed": recipe.seed,
            "machine": machine.as_dict(),
        }
        artifact = Artifact(config.kind, content_hash(inputs))
        stages[name] = PlannedStage(name, config.kind, parent, config, artifact, artifact.path / "model")
    evals = [
        PlannedEval(stage.name, i, Artifact("eval", content_hash([
            VERSIONS["eval"], stage.artifact.key, with_file_hashes(config.model_dump(mode="json")),
            recipe.seed, machine.as_dict(),
        ])))
        for stage in stages.values() for i, config in enumerate(recipe.evaluate)
    ]  # fmt: skip
    return Plan(recipe, machine, stages, evals)


def with_file_hashes(tree: Any) -> Any:
    """A config with the content's hash beside every file that it names, so that an edited file is a
    new input. Files are what stands under `data` or `text`, and a task given as file.py:Class."""
    if isinstance(tree, list):
        return [with_file_hashes(node) for node in tree]
    if not isinstance(tree, dict):
        return tree
    out = {key: with_file_hashes(value) for key, value in tree.items()}
    out["files"] = [file_hash(Path(path).expanduser()) for path in _files(tree)]
    return out


def _files(tree: dict[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if not isinstance(value, str):
            continue
        if key == "data" or (key == "text" and value != "nano"):
            yield value
        elif key == "task" and ".py:" in value:
            yield value.rpartition(":")[0]
