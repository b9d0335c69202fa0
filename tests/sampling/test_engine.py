"""The engine against transformers' generate, the scorer and itself under other company."""

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from strop.errors import StropError
from strop.protocols import Request, Sampler, Scorer
from strop.sampling import engine as module
from strop.sampling.choose import choose, nucleus, uniforms
from strop.sampling.engine import Engine, Job
from strop.sampling.policy import Policy
from strop.types import Author, Message, Prompt, Sampling

EOS = 0
FREQUENT = tuple(range(30))  # enough stop tokens that some samples meet one


@pytest.fixture(scope="module")
def policy(random_checkpoint):
    return Policy.load(random_checkpoint("qwen3"))


@pytest.fixture(scope="module")
def reference(random_checkpoint):
    return AutoModelForCausalLM.from_pretrained(random_checkpoint("qwen3"))


def random_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    g = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, 350, (length,), generator=g).tolist())


def run(decoder, jobs, **options):
    """Samples by (job, index)."""
    return {(s.id, s.index): s for s in Engine(decoder, **options).stream(jobs)}


MIXED = [
    Job("greedy", random_prompt(5), Sampling(0.0, max_tokens=20, stops=FREQUENT)),
    Job("one token", random_prompt(1), Sampling(1.0, max_tokens=15, seed=3, stops=FREQUENT), n=2),
    Job("hot", random_prompt(30), Sampling(1.5, max_tokens=9, seed=7, stops=(EOS,)), n=3),
    Job("filtered", random_prompt(12), Sampling(1.0, top_p=0.7, max_tokens=25, seed=9, stops=FREQUENT), n=4),
    Job("cold", random_prompt(12, 1), Sampling(0.4, max_tokens=40, seed=5, stops=FREQUENT), n=2),
    Job("short", random_prompt(20), Sampling(1.0, max_tokens=1, seed=11), n=3),
    Job("full", random_prompt(120), Sampling(1.0, max_tokens=50, seed=13)),
]


def test_greedy_equals_transformers_token_for_token(policy, reference):
    prompts = [random_prompt(n) for n in (1, 2, 9, 10, 40, 77)]
    jobs = [Job(str(i), p, Sampling(0.0, max_tokens=24, stops=FREQUENT)) for i, p in enumerate(prompts)]
    samples = run(policy.decoder, jobs, slots=4)
    greedy = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": list(FREQUENT), "pad_token_id": 0}
    for i, prompt in enumerate(prompts):
        ids = reference.generate(torch.tensor([prompt]), **greedy)
        assert samples[str(i), 0].completion_ids == tuple(ids[0, len(prompt) :].tolist())
    assert {s.finish for s in samples.values()} == {"stop", "length"}


@pytest.mark.parametrize("job", [j for j in MIXED if j.sampling.temperature > 0], ids=lambda job: job.id)
@torch.no_grad()
def test_tokens_are_what_each_steps_uniform_picks_from_transformers_logits(policy, reference, job):
    for (_, index), sample in run(policy.decoder, [job]).items():
        steps = len(sample.completion_ids)
        logits = reference(torch.tensor([job.prompt_ids + sample.completion_ids])).logits[0, -1 - steps : -1]
        u = uniforms(torch.full((steps,), job.sampling.seed + index), torch.arange(steps))
        spread = [torch.full((steps,), x) for x in (job.sampling.temperature, job.sampling.top_p)]
        assert choose(logits, *spread, u)[0].tolist() == list(sample.completion_ids)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_request_does_not_depend_on_its_company(policy, slots):
    together = run(policy.decoder, MIXED, slots=slots)
    assert len(together) == sum(job.n for job in MIXED)
    for job in MIXED:
        for key, alone in run(policy.decoder, [job]).items():
            sample = together[key]
            assert (sample.completion_ids, sample.finish) == (alone.completion_ids, alone.finish)
            assert sample.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert len({s.completion_ids for s in together.values()}) > 10


def test_forks_equal_separate_requests_with_the_next_seeds(policy):
    sampling = Sampling(1.0, max_tokens=20, seed=40, stops=FREQUENT)
    forked = run(policy.decoder, [Job("a", random_prompt(17), sampling, n=5)])
    separate = [Job(str(i), random_prompt(17), replace(sampling, seed=40 + i)) for i in range(5)]
    for (id, _), sample in run(policy.decoder, separate).items():
        assert sample.completion_ids == forked["a", int(id)].completion_ids
        assert sample.logprobs == pytest.approx(forked["a", int(id)].logprobs, abs=1e-4)
    assert len({s.completion_ids for s in forked.values()}) == 5


@pytest.mark.parametrize("options", [{"cache_bytes": 1}, {"cache_bytes": 200_000}, {"prefill": 13}])
def test_memory_limits_change_no_token(policy, monkeypatch, options):
    expected = run(policy.decoder, MIXED)
    monkeypatch.setattr(module, "PREFILL_TOKENS", options.pop("prefill", module.PREFILL_TOKENS))
    assert {k: s.completion_ids for k, s in run(policy.decoder, MIXED, **options).items()} == {
        k: s.completion_ids for k, s in expected.items()
    }


def test_a_used_cache_leaves_no_trace(policy):
    engine = Engine(policy.decoder)
    runs = [[s.completion_ids for s in engine.stream(jobs)] for jobs in (MIXED[:3], MIXED, MIXED[:3])]
    assert runs[0] == runs[2] != runs[1]


def test_jobs_of_one_id_keep_their_own_prompts(policy):
    jobs = [Job("same", random_prompt(9, seed), Sampling(0.0, max_tokens=8)) for seed in (1, 2)]
    got = sorted(s.completion_ids for s in Engine(policy.decoder).stream(jobs))
    assert got == sorted(run(policy.decoder, [job])["same", 0].completion_ids for job in jobs)
    assert got[0] != got[1]


def test_a_sample_ends_at_its_first_stop_or_its_limit(policy):
    samples = run(policy.decoder, MIXED)
    for job in MIXED:
        for i in range(job.n):
            sample, stops = samples[job.id, i], set(job.sampling.stops)
            *body, last = sample.completion_ids
            assert not stops & set(body)
            assert sample.finish == ("stop" if last in stops else "length")
            if sample.finish == "length":
                assert len(sample.completion_ids) == min(job.sampling.max_tokens, 128 - len(job.prompt_ids))
            assert len(sample.logprobs) == len(sample.completion_ids)
    assert len(samples["full", 0].completion_ids) == 8  # the context is 128 tokens
    assert Counter(s.finish for s in samples.values()).keys() == {"stop", "length"}


@pytest.mark.parametrize("length, says", [(128, "128 tokens; the model's context is 128"), (0, "has 0 tokens")])
def test_a_prompt_that_leaves_no_room_is_refused(policy, length, says):
    with pytest.raises(StropError, match=says):
        next(Engine(policy.decoder).stream([Job("a", random_prompt(length), Sampling())]))


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}])
def test_sampling_that_can_not_be_is_refused(policy, fields):
    with pytest.raises(StropError, match="sampling needs"):
        next(Engine(policy.decoder).stream([Job("a", (1, 2), Sampling(**fields))]))


def test_a_prompt_may_leave_room_for_one_token(policy, reference):
    prompt = random_prompt(127)
    sample = run(policy.decoder, [Job("a", prompt, Sampling(0.0))])["a", 0]
    assert sample.completion_ids == (int(reference(torch.tensor([prompt])).logits[0, -1].argmax()),)


def test_samples_come_as_they_finish(policy):
    """The first result is there after few forward passes, not when all are done."""
    passes = []
    hook = policy.decoder.register_forward_hook(lambda *_: passes.append(1))
    limits = {"long": 60, "short": 2, "middle": 20}
    jobs = [Job(id, random_prompt(8), Sampling(max_tokens=n)) for id, n in limits.items()]
    order, passes_then = [], []
    for sample in Engine(policy.decoder).stream(jobs):
        order.append(sample.id)
        passes_then.append(len(passes))
    hook.remove()
    assert order == ["short", "middle", "long"]
    assert passes_then == [3, 21, 61]  # one prefill, then a pass per token


def test_streams_of_one_engine_do_not_disturb_each_other(policy):
    engine, expected = Engine(policy.decoder), run(policy.decoder, MIXED)
    outer = engine.stream(MIXED)
    samples = [next(outer), *engine.stream(MIXED[3:4]), *outer]
    assert len(samples) == len(expected) + MIXED[3].n
    assert all(s.completion_ids == expected[s.id, s.index].completion_ids for s in samples)


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_the_ledger_adds_up(policy, slots):
    tokens_run = []
    hook = policy.decoder.register_forward_hook(lambda _, args, __: tokens_run.append(args[0].numel()))
    job, began = Job("a", random_prompt(21), Sampling(max_tokens=6), n=8), time.perf_counter()
    samples = run(policy.decoder, [job], slots=slots).values()
    elapsed = time.perf_counter() - began
    hook.remove()
    total = sum(s.ledger for s in samples)
    assert total.prompt_tokens + total.cached_tokens == 8 * 21
    assert total.cached_tokens == {1: 0, 4: 6 * 20, 64: 7 * 20}[slots]
    assert total.generated_tokens == 8 * 6 and total.calls == 8
    assert sum(tokens_run) == total.prompt_tokens + total.generated_tokens - 8  # the last is not fed back
    assert total.flops > 2 * policy.decoder.shape.matrix_parameters * sum(tokens_run)
    assert 0 < total.seconds <= elapsed and all(s.ledger.seconds > 0 for s in samples)


BRIEFLY = (Message("system", "Brief."), Message("user", "Hi, Ada"))
QUESTIONS = [Prompt.user("What is 12 + 34?"), Prompt(BRIEFLY)]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_sampler_and_scorer_give_the_same_logprobs(policy, temperature, top_p):
    sampling = Sampling(temperature, top_p, max_tokens=30, seed=2)
    rollouts = [r for group in policy.sample(QUESTIONS, sampling, n=3) for r in group]
    for rollout, scored in zip(rollouts, policy.score(rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(scored, abs=1e-4)
        assert (rollout.turns[0].behavior_logprobs is None) == (temperature == 0 or top_p == 1)
    at_one = policy.score(rollouts, temperature=1.0)
    same = all(a == pytest.approx(r.logprobs, abs=1e-3) for a, r in zip(at_one, rollouts, strict=True))
    assert same == (temperature in (0.0, 1.0))


@torch.no_grad()
def test_behavior_logprobs_are_of_the_nucleus(policy, reference):
    sampling = Sampling(0.9, top_p=0.6, max_tokens=30, seed=2)
    [[rollout]] = policy.sample(QUESTIONS[:1], sampling)
    turn = rollout.turns[0]
    logits = reference(torch.tensor([rollout.ids])).logits[0, len(turn.prompt_ids) - 1 : -1]
    filtered = nucleus((logits / 0.9).log_softmax(-1), torch.full((len(logits),), 0.6))
    expected = filtered.gather(-1, torch.tensor(turn.completion_ids)[:, None])[:, 0].tolist()
    assert turn.behavior_logprobs == pytest.approx(expected, abs=1e-4)
    assert max(b - m for b, m in zip(turn.behavior_logprobs, turn.logprobs, strict=True)) > 0.1


def test_rollouts_say_how_they_were_made(policy):
    assert isinstance(policy, Sampler) and isinstance(policy, Scorer)
    groups = policy.sample(QUESTIONS, Sampling(max_tokens=12, seed=100), n=3)
    for i, group in enumerate(groups):
        prompt_ids = tuple(policy.renderer.prompt(QUESTIONS[i].messages))
        for j, r in enumerate(group):
            assert r.prompt is QUESTIONS[i] and r.sampling.seed == 100 + 3 * i + j
            assert r.turns[0].prompt_ids == prompt_ids
            assert r.authors.count(Author.POLICY) == len(r.completion_ids)
            assert r.text == policy.renderer.decode(r.completion_ids).strip()
            assert r.template_hash == policy.renderer.template_hash and r.turns[0].version == policy.version
    again = policy.sample(QUESTIONS[1:], Sampling(max_tokens=12, seed=103), n=3)
    assert [r.ids for r in again[0]] == [r.ids for r in groups[1]]


def test_a_request_id_used_twice_is_refused(policy):
    requests = [Request("a", prompt, Sampling(max_tokens=2)) for prompt in QUESTIONS]
    with pytest.raises(StropError, match="used twice"):
        list(policy.stream(requests))


def test_new_weights_are_sampled_from_and_named(random_checkpoint):
    policy, other = (Policy.load(random_checkpoint("llama", initializer_range=r)) for r in (0.2, 0.25))
    policy.sample(QUESTIONS, Sampling(max_tokens=12))
    policy.update_weights(dict(other.decoder.named_parameters()), version=7)
    new, expected = (p.sample(QUESTIONS, Sampling(max_tokens=12)) for p in (policy, other))
    assert [g[0].ids for g in new] == [g[0].ids for g in expected]
    assert new[0][0].turns[0].version == 7


@pytest.mark.parametrize("dtype", ["bf16", "float16"])
def test_a_dtype_that_is_not_supported_is_refused(random_checkpoint, dtype):
    with pytest.raises(StropError, match=f"dtype '{dtype}'.* float32 or bfloat16"):
        Policy.load(random_checkpoint("llama"), dtype=dtype)


def test_a_copy_computes_as_its_source_does(random_checkpoint):
    policy = Policy.load(random_checkpoint("llama"), dtype="bfloat16")
    assert policy.autocast is policy.copy().autocast is torch.bfloat16
    groups = [p.sample(QUESTIONS, Sampling(max_tokens=12)) for p in (policy, policy.copy())]
    assert [g[0].ids for g in groups[0]] == [g[0].ids for g in groups[1]]


def test_a_rollout_longer_than_the_context_is_not_scored(policy):
    [[rollout]] = policy.sample(QUESTIONS[:1], Sampling(max_tokens=2))
    turn = replace(rollout.turns[0], completion_ids=(5,) * 128, logprobs=(0.0,) * 128)
    with pytest.raises(StropError, match="the model's context is 128"):
        policy.score([replace(rollout, turns=(turn,))])


def test_a_saved_policy_serves_in_transformers(random_checkpoint, tmp_path):
    policy = Policy.load(random_checkpoint("qwen2", template="chatml", tie_word_embeddings=True))
    policy.save(tmp_path)
    [[rollout]] = policy.sample(QUESTIONS[:1], Sampling(0.0, max_tokens=20))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    asked = [m.as_dict() for m in QUESTIONS[0].messages]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, do_sample=False, max_new_tokens=20, pad_token_id=0)
    assert out[0].tolist() == rollout.ids
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == list(policy.renderer.stops) == [0, 2]
    assert Policy.load(tmp_path).sample(QUESTIONS[:1], Sampling(0.0, max_tokens=20))[0][0].ids == rollout.ids
