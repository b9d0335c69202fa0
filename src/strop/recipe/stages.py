"""What each kind of stage does with its config: gather its data, train, measure KL, leave a model."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from strop.data.rows import conversation, read_rows
from strop.errors import StropError
from strop.evals.evaluate import EvalConfig
from strop.ledger import Ledger
from strop.protocols import Task
from strop.recipe.config import PretrainStage, RLStage, SFTStage, Source, StageConfig
from strop.recipe.plan import Plan, PlannedStage
from strop.recipe.show import Console
from strop.sampling.policy import Policy
from strop.synth.base_text import TEXTS
from strop.tasks import task
from strop.train.kl import KLProbe
from strop.train.loop import Stage
from strop.train.pretrain import new_policy, pretrain
from strop.train.rl import rl
from strop.train.sft import conversation_datum, sft
from strop.types import Message

KL_PROMPTS = 64  # fixed prompts that KL is measured on, spread over the evaluated tasks' dev splits


def make_task(config: EvalConfig | RLStage | Source) -> Task:
    """The task that a config names, with its options."""
    return task(str(config.task), **config.options, **({} if config.data is None else {"data": config.data}))


def run_stage(planned: PlannedStage, plan: Plan, console: Console) -> None:
    """Train one stage and leave its model in the store."""
    config = planned.config
    assert config is not None
    with console.stage(planned.name, planned.kind) as progress:
        stage = Stage(planned.artifact.path, plan.recipe.seed, progress)
        if isinstance(config, PretrainStage) and config.new is not None:
            policy, probe = new_policy(config.new, islice(_text(config), 20000), stage.seed), None
        else:
            parent = plan.stages[planned.parent or ""].model
            policy, probe = load(parent, plan), _probe(parent, plan)
        ledger = _train(policy, config, stage, probe, console)
        kl = probe.measure(policy) if probe else None
    partial = planned.model.with_name("model.partial")
    for directory in (partial, planned.model):
        shutil.rmtree(directory, ignore_errors=True)
    policy.save(partial)
    partial.rename(planned.model)
    record = {"kind": planned.kind, "key": planned.artifact.key, "seconds": ledger.seconds, "kl": kl}
    planned.artifact.finish({**record, "ledger": ledger.as_dict()})
    stage.checkpoint.unlink(missing_ok=True)


def load(model: Path, plan: Plan) -> Policy:
    """A policy on the machine and in the dtype that the plan says."""
    return Policy.load(model, plan.machine.device, plan.machine.dtype)


def _train(policy: Policy, config: StageConfig, stage: Stage, probe: KLProbe | None, console: Console) -> Ledger:
    if isinstance(config, SFTStage):
        conversations = [c for source in config.data for c in read_source(source)]
        console.preview(conversation_datum(policy.renderer, conversations[0]), policy.renderer)
        return sft(policy, conversations, config, stage)
    if isinstance(config, RLStage):
        return rl(policy, make_task(config), config, stage, probe, console.preview_rollout(policy))
    return pretrain(policy, TEXTS.get(config.text) or list(_text(config)), config, stage)


def _probe(parent: Path, plan: Plan) -> KLProbe | None:
    """KL to the stage's starting point, on dev prompts of every evaluated task."""
    if not (evals := plan.recipe.evaluate):
        return None
    share = -(-KL_PROMPTS // len(evals))
    prompts = [prompt for config in evals for prompt in make_task(config).prompts("dev")[:share]]
    return KLProbe(load(parent, plan), prompts, max(config.max_tokens for config in evals)) if prompts else None


def read_source(source: Source) -> list[Sequence[Message]]:
    """The conversations of one SFT source: a file's rows, or a task's demonstrations (its golds if it has none)."""
    if source.task is None:
        if source.data is None:
            raise StropError("sft: every source needs `task`, `data`, or both")
        return [conversation(r, f"{source.data}:{i}") for i, r in enumerate(read_rows(source.data)[: source.rows], 1)]
    problems = make_task(source)
    demonstrate = getattr(problems, "demonstrate", problems.gold)
    return [(*p.messages, Message("assistant", demonstrate(p))) for p in problems.prompts("train")[: source.rows]]


def _text(config: PretrainStage) -> Iterator[str]:
    """Documents: the generated base text, rows' `text`, or a .txt file's paragraphs."""
    if config.text in TEXTS:
        yield from TEXTS[config.text](-1)
    elif config.text.endswith((".jsonl", ".parquet")):
        yield from (str(row["text"]) for row in read_rows(config.text, ("text",)))
    else:
        yield from (part for part in Path(config.text).read_text(encoding="utf-8").split("\n\n") if part.strip())
