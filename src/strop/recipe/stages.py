"""What each kind of stage does with its config: gather its data, train, measure KL, leave a model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from strop.data.rows import conversation, read_rows
from strop.errors import StropError
from strop.evals.evaluate import EvalConfig
from strop.ledger import Ledger
from strop.protocols import Task
from strop.recipe.config import PretrainStage, RLStage, SFTStage, Source
from strop.recipe.plan import KL_PROMPTS, Plan, PlannedStage
from strop.recipe.show import Console
from strop.sampling.policy import Policy
from strop.synth.base_text import documents
from strop.tasks import task
from strop.train.kl import KLProbe
from strop.train.loop import Progress, StageDir
from strop.train.pretrain import new_policy, pretrain
from strop.train.rl import rl
from strop.train.sft import conversation_datum, sft
from strop.types import Message, Prompt


def make_task(config: EvalConfig | RLStage | Source) -> Task:
    """The task that a config names, with its options."""
    options = dict(config.options)
    if config.data is not None:
        options["data"] = config.data
    return task(str(config.task), **options)


def run_stage(planned: PlannedStage, plan: Plan, console: Console) -> None:
    """Train one stage and leave its model in the store."""
    config, stage = planned.config, StageDir(planned.artifact.path)
    assert planned.model is not None
    parent = plan.stages[planned.parent].model if planned.parent else None
    with console.stage(planned.name, planned.kind) as progress:
        if isinstance(config, PretrainStage) and config.new is not None:
            policy, probe = new_policy(config.new, _first_texts(config), plan.recipe.seed), None
        else:
            assert parent is not None
            policy = _load(parent, plan)
            probe = _probe(parent, plan)
        ledger = _train(policy, config, stage, plan, probe, console, progress)
        kl = probe.measure(policy) if probe else None
    partial = planned.model.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.save(partial)
    shutil.rmtree(planned.model, ignore_errors=True)
    partial.rename(planned.model)
    record = {"kind": planned.kind, "key": planned.artifact.key, "from": planned.parent}
    planned.artifact.finish({**record, "seconds": ledger.seconds, "ledger": ledger.as_dict(), "kl": kl})
    stage.checkpoint.unlink(missing_ok=True)


def _load(model: Path, plan: Plan) -> Policy:
    return Policy.load(model, plan.machine.device, plan.machine.dtype)


def _train(
    policy: Policy, config: Any, stage: StageDir, plan: Plan, probe: KLProbe | None, console: Console, progress: Progress
) -> Ledger:  # fmt: skip
    seed = plan.recipe.seed
    if isinstance(config, SFTStage):
        conversations = [c for source in config.data for c in read_source(source)]
        console.preview(conversation_datum(policy.renderer, conversations[0]), policy.renderer)
        return sft(policy, conversations, config, stage, seed, progress)
    if isinstance(config, RLStage):
        return rl(policy, make_task(config), config, stage, seed, probe, progress, console.preview_rollout(policy))
    texts = [] if config.text == "nano" else read_texts(config.text)
    return pretrain(policy, documents if not texts else None, texts, config, stage, seed, progress)


def _probe(parent: Path, plan: Plan) -> KLProbe | None:
    """KL to the stage's starting point, on dev prompts of every evaluated task."""
    evals = plan.recipe.evaluate
    prompts: list[Prompt] = []
    for config in evals:
        prompts += make_task(config).prompts("dev")[: -(-KL_PROMPTS // len(evals))]
    longest = max((config.max_tokens for config in evals), default=0)
    return KLProbe(_load(parent, plan), prompts, longest) if prompts else None


def read_source(source: Source) -> list[Sequence[Message]]:
    """The conversations of one SFT source."""
    if source.task is None and source.data is None:
        raise StropError("sft: every source needs `task`, `data`, or both")
    if source.task is None:
        rows = read_rows(str(source.data))[: source.rows]
        return [conversation(row, f"{source.data}:{i}") for i, row in enumerate(rows, 1)]
    problems = make_task(source)
    demonstrate = getattr(problems, "demonstrate", problems.gold)
    prompts = problems.prompts("train")[: source.rows]
    return [(*prompt.messages, Message("assistant", demonstrate(prompt))) for prompt in prompts]


def read_texts(path: str) -> list[str]:
    """Documents of a file: rows' `text`, or a .txt file's paragraphs."""
    if path.endswith((".jsonl", ".parquet")):
        return [str(row["text"]) for row in read_rows(path, ("text",))]
    if not Path(path).is_file():
        raise StropError(f"{path}: no such file")
    return [part for part in Path(path).read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _first_texts(config: PretrainStage) -> list[str]:
    """Text for a tokenizer to be trained on."""
    return list(islice(documents(-1), 20000)) if config.text == "nano" else read_texts(config.text)
