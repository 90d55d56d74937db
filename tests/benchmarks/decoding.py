"""Speed and memory of answering prompts with a tuned prefix, beside PEFT + transformers' generate.

    python tests/benchmarks/decoding.py --device cuda --shape chatglm2-6b
    python tests/benchmarks/decoding.py --device cpu --rows 40 --slots 8 16

1,070 prompts of 45 to 64 random tokens, each answered with a length of its own, 48 to 96 tokens or
what ``--new`` says (random weights never end an answer by themselves). The weights are random, a
prefix of 128 tokens is on. Prints a JSON line for each part; a part that fails says so in its line,
and the others go on. A number of slots is run twice, and the second run counts: kernels are loaded
and compiled in the first. Seconds of prompts and steps are those of the host between two looks at
the device, so that together they are all but the bookkeeping.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GlmConfig, GlmForCausalLM

from ptkit.engine.decoding import Decoder
from ptkit.engine.generate import GPU_PREFILL, Batch, Request
from ptkit.engine.model import Model
from ptkit.models import LoadedBackbone
from ptkit.records import EncodedRow, Geometry, Row, Sampling

SHAPES: dict[str, dict[str, Any]] = {
    "chatglm2-6b": {
        "vocab_size": 65024,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
PEFT_BATCH = 256
WARM_TOKENS = 8


def build(shape: str, device: str, dtype: torch.dtype) -> Any:
    """A GLM with random weights, made on the device."""
    config = GlmConfig(
        **SHAPES[shape],
        partial_rotary_factor=0.5,
        attention_bias=True,
        rms_norm_eps=1e-5,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        whole: Any = GlmForCausalLM(config)
    whole = whole.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in whole.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if "norm" in name else 0.0)
        else:
            parameter.data.normal_(0, 0.02)
    # buffers are not filled by to_empty
    whole.model.rotary_emb = type(whole.model.rotary_emb)(config).to(device)
    return whole


def make_model(whole: Any, prefix_length: int) -> Model:
    config = whole.config
    attentions = [layer.self_attn for layer in whole.model.layers]
    geometry = Geometry(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.hidden_size,
        config.vocab_size,
        config.max_position_embeddings,
        0,
    )
    loaded = LoadedBackbone(whole.model, attentions, whole.lm_head)
    model = Model(loaded, geometry, pad_id=0, eos_id=-1)
    size = (1, geometry.kv_groups, prefix_length, geometry.head_size)
    pairs = range(geometry.layers)
    model.set_prefix(
        [tuple(torch.randn(size, device=model.device) for _ in "kv") for _ in pairs]  # type: ignore[misc]
    )
    return model


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def show(part: str, work: Callable[[], dict[str, Any]], device: str) -> None:
    """A line of what ``work`` found, with the peak of memory, or of why it failed."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        line = {"part": part, **work()}
        if device == "cuda":
            line["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        line = {"part": part, "failed": text}
    print(json.dumps(line), flush=True)


def answered(
    model: Model, prompts: Sequence[list[int]], limits: Sequence[int], slots: int
) -> tuple[list[Request], dict[str, Any]]:
    """The prompts with their answers, and what it took."""
    device = model.device.type
    requests = [
        Request(prompt, key, limit, 0)
        for key, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    waiting = sorted(requests, key=lambda request: -len(request.prompt))
    seconds = {"prefill": 0.0, "steps": 0.0}
    counts = {"prefill": 0, "steps": 0}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            found = method(*args)
            seconds[name] += time.perf_counter() - start
            counts[name] += args[0] if name == "steps" else 1
            return found

        return call

    wait(device)
    start = time.perf_counter()
    slots = min(slots, len(waiting))
    with torch.no_grad():
        batch = Batch(model, waiting, Sampling(max(limits)), slots, GPU_PREFILL, None)
        decoder: Any = batch.decoder
        decoder.prefill = timed("prefill", decoder.prefill)
        decoder.steps = timed("steps", decoder.steps)
        batch.run()
    wait(device)
    whole = time.perf_counter() - start
    tokens = sum(len(request.answer) for request in requests)
    assert tokens == sum(limits)
    return requests, {
        "slots": slots,
        "seconds": round(whole, 3),
        "tokens/s": round(tokens / whole),
        "prefill s": round(seconds["prefill"], 3),
        "prefills": counts["prefill"],
        "steps s": round(seconds["steps"], 3),
        "steps": counts["steps"],
        "graphs": batch.decoder.graphs,
        "graph failure": batch.decoder.graph_failure,
    }


def step_time(model: Model, slots: int, prompt: int) -> dict[str, Any]:
    """One step of all slots behind prompts of equal length; the median of ten."""
    rows = [[3 + (i + j) % 90 for j in range(prompt)] for i in range(slots)]
    times = []
    with torch.no_grad():
        decoder = Decoder(model, Sampling(32), slots=slots, room=prompt + 32, ahead=2)
        for first in range(0, slots, 64):
            some = range(first, min(slots, first + 64))
            decoder.prefill(some, [rows[i] for i in some], [0] * len(some), [], [0] * len(some))
        for _ in range(13):
            start = time.perf_counter()
            decoder.steps(2, slots, prompt + 32)
            times.append((time.perf_counter() - start) / 2)
    return {
        "slots": slots,
        "ms": round(1000 * statistics.median(times[3:]), 2),
        "graph failure": decoder.graph_failure,
    }


def agreement(model: Model, requests: Sequence[Request]) -> dict[str, Any]:
    """The answers' tokens against the logits of one pass over prompt and answer, with no cache."""
    rows = [EncodedRow(Row((*r.prompt, *r.answer)), i) for i, r in enumerate(requests)]
    assert model.lm_head is not None
    with torch.no_grad():
        states = model.states(rows)
        places = [range(len(r.prompt) - 1, len(r.prompt) + len(r.answer) - 1) for r in requests]
        logits = model.lm_head(states.at(places)).float()
    chosen = torch.tensor([token for r in requests for token in r.answer], device=model.device)
    best = logits.max(-1).values
    behind = best - logits.gather(1, chosen[:, None])[:, 0]
    return {
        "tokens": len(chosen),
        "best of one pass": round(float((behind == 0).float().mean()), 4),
        "furthest behind": round(float(behind.max()), 4),
        "deviation of logits": round(float(logits.std()), 4),
    }


def profiled(model: Model, slots: int, prompt: int) -> dict[str, Any]:
    """Where a step's time on the device goes: microseconds by kernel, kernel by kernel."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad():
        decoder = Decoder(model, Sampling(32), slots=slots, room=prompt + 32, ahead=1)
        rows = [[3 + i % 90] * prompt for i in range(min(slots, 32))]
        decoder.prefill(range(len(rows)), rows, [0] * len(rows), [], [0] * len(rows))
        decoder.steps(1, slots, prompt + 32)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            decoder.logits(slots, prompt + 32)
            wait(model.device.type)
    on_device = model.device.type == "cuda"
    times: dict[str, float] = {}
    for event in found.key_averages():
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if spent:
            times[event.key[:90]] = round(spent)
    best = sorted(times.items(), key=lambda item: -item[1])[:16]
    return {"slots": slots, "all us": sum(times.values()), "us": dict(best)}


def peft_seconds(
    whole: Any,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    prefix_length: int,
    rows: int | None,
) -> dict[str, Any]:
    """PEFT with batches of 256, each up to its longest answer; ``rows``: only so many, then scaled
    up."""
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix_length)
    tuned: Any = get_peft_model(whole, config).eval()
    device = next(whole.parameters()).device
    count = len(prompts) if rows is None else min(rows, len(prompts))

    def batch(first: int, new: int) -> None:
        some = prompts[first : min(count, first + PEFT_BATCH)]
        longest = max(map(len, some))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in some], device=device)
        real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some], device=device)
        tuned.generate(
            input_ids=ids,
            attention_mask=real,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
        )

    batch(0, WARM_TOKENS)
    wait(device.type)
    start = time.perf_counter()
    for first in range(0, count, PEFT_BATCH):
        batch(first, max(limits[first : min(count, first + PEFT_BATCH)]))
    wait(device.type)
    seconds = time.perf_counter() - start
    tokens = sum(limits[:count])
    return {
        "batch": PEFT_BATCH,
        "rows": count,
        "seconds": round(seconds, 3),
        "seconds for all rows": round(seconds * len(prompts) / count, 3),
        "tokens/s": round(tokens / seconds),
    }


def decode_benchmark(
    model: Model,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    slots: Sequence[int],
    *,
    steps: bool,
    profile: bool,
) -> None:
    """Print a line for each number of slots, then those of single steps."""
    device = model.device.type
    kept: list[Request] = []
    for number in slots:

        def part(number: int = number) -> dict[str, Any]:
            answered(model, prompts, [min(limit, WARM_TOKENS) for limit in limits], number)
            requests, line = answered(model, prompts, limits, number)
            kept[:] = requests[:64]
            return line

        show("ptkit", part, device)
    if kept:
        show("agreement", lambda: agreement(model, kept), device)
    prompt = max(map(len, prompts))
    for number in slots if steps else ():
        show("step", lambda number=number: step_time(model, number, prompt), device)  # type: ignore[misc]
    if profile:
        show("profile", lambda: profiled(model, max(slots), prompt), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=SHAPES, help="default: chatglm2-6b on a GPU, else tiny")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", type=int, default=1070)
    parser.add_argument("--slots", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--new", type=int, nargs=2, default=(48, 96), metavar=("LEAST", "MOST"))
    parser.add_argument("--prefix", type=int, default=128, help="virtual tokens")
    parser.add_argument("--peft-rows", type=int, help="PEFT answers only so many; 0: none")
    parser.add_argument("--steps", action="store_true", help="time single steps, too")
    parser.add_argument("--profile", action="store_true", help="kernels of a step, too")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    shape = args.shape or ("chatglm2-6b" if cuda else "tiny")
    dtype = getattr(torch, args.dtype or ("bfloat16" if cuda else "float32"))
    draw = torch.Generator().manual_seed(1)
    vocabulary = SHAPES[shape]["vocab_size"]

    def draws(count: int, least: int, most: int) -> list[int]:
        found: list[int] = torch.randint(least, most + 1, (count,), generator=draw).tolist()
        return found

    prompts = [draws(length, 3, vocabulary - 1) for length in draws(args.rows, 45, 64)]
    limits = draws(args.rows, *args.new)
    whole = build(shape, args.device, dtype)
    about = {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "rows": args.rows,
        "prompt tokens": sum(map(len, prompts)),
        "new tokens": sum(limits),
        "prefix": args.prefix,
    }
    show("about", lambda: about, args.device)
    if args.peft_rows != 0:

        def peft() -> dict[str, Any]:
            return peft_seconds(whole, prompts, limits, args.prefix, args.peft_rows)

        show("peft", peft, args.device)
    model = make_model(whole, args.prefix)
    decode_benchmark(model, prompts, limits, args.slots, steps=args.steps, profile=args.profile)


if __name__ == "__main__":
    main()
