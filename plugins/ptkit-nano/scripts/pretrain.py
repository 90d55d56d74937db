"""Pretrain ptkit-nano.

``python scripts/pretrain.py --corpus corpus-zh --out ptkit_nano/model``

Needs the tokenizer in the output folder, and a CUDA device unless ``--device cpu``.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
from pathlib import Path

import numpy
import torch
from documents import SOURCES, Corpus, documents, read_corpus
from glm import Glm, Shape
from safetensors.torch import save_file
from tokens import Rows, Tokenizer, pack
from torch import Tensor, nn

LENGTH = 512  # tokens a row
SHARD = 2048  # rows a shard


def make_shard(seed: str, corpus: Corpus, tokenizer_path: Path, rows: int) -> Rows:
    return pack(documents(corpus, seed), Tokenizer(tokenizer_path), rows, LENGTH)


def make_rows(corpus: Path, tokenizer_path: Path, shards: int, processes: int) -> Rows:
    work = functools.partial(
        make_shard,
        corpus=read_corpus(corpus, held_out=False),
        tokenizer_path=tokenizer_path,
        rows=SHARD,
    )
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        parts = pool.map(work, [f"shard-{index}" for index in range(shards)], chunksize=1)
    return Rows(
        *(
            numpy.concatenate([getattr(part, name) for part in parts])
            for name in ("ids", "segments", "sources")
        )
    )


def model_inputs(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [b, s], from 0 in every document, and a mask [b, 1, s, s] that parts documents."""
    s = segments.shape[1]
    index = torch.arange(s, device=segments.device)
    first = nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    start = torch.where(first, index, 0).cummax(dim=1).values
    causal = index[:, None] >= index[None, :]
    mask = (segments[:, :, None] == segments[:, None, :]) & causal
    return index - start, mask[:, None]


def token_losses(model: nn.Module, ids: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [b, s-1] in float32, and which of them count."""
    positions, mask = model_inputs(segments)
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(ids, positions, mask)[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return losses.view(ids.shape[0], -1), counts


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up, then constant, then a linear way down over the last half."""
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.5 * steps))


def train(model: Glm, rows: Rows, arguments: argparse.Namespace) -> None:
    device = arguments.device
    ids = torch.from_numpy(rows.ids.astype(numpy.int32)).to(device)
    segments = torch.from_numpy(rows.segments).to(device)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

    def batch_loss(batch_ids: Tensor, batch_segments: Tensor) -> Tensor:
        losses, counts = token_losses(model, batch_ids.long(), batch_segments)
        return (losses * counts).sum() / counts.sum()

    compiled = torch.compile(batch_loss) if device == "cuda" else batch_loss
    generator = torch.Generator().manual_seed(arguments.seed)
    order = torch.empty(0, dtype=torch.long)
    began = time.perf_counter()
    for step in range(arguments.steps):
        if len(order) < arguments.batch:
            order = torch.randperm(len(ids), generator=generator)
        chosen, order = order[: arguments.batch].to(device), order[arguments.batch :]
        rate = learning_rate(step, arguments.steps, arguments.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = compiled(ids[chosen], segments[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == arguments.steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def evaluate(model: Glm, rows: Rows, device: str) -> dict[str, float]:
    """Loss a token on held-out text, in all and by source."""
    sums = torch.zeros(len(SOURCES), dtype=torch.float64)
    weights = torch.zeros(len(SOURCES), dtype=torch.float64)
    for at in range(0, len(rows.ids), 64):
        ids = torch.from_numpy(rows.ids[at : at + 64].astype(numpy.int64)).to(device)
        segments = torch.from_numpy(rows.segments[at : at + 64]).to(device)
        losses, counts = token_losses(model, ids, segments)
        sources = torch.from_numpy(rows.sources[at : at + 64, 1:].astype(numpy.int64))[counts.cpu()]
        sums.index_add_(0, sources, losses[counts].double().cpu())
        weights.index_add_(0, sources, torch.ones(len(sources), dtype=torch.float64))
    scores = {
        name: round(float(s / w), 4) for name, s, w in zip(SOURCES, sums, weights, strict=True)
    }
    return {"all": round(float(sums.sum() / weights.sum()), 4), **scores}


def write_config(shape: Shape, path: Path) -> None:
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": shape.hidden_size,
        "kv_channels": shape.kv_channels,
        "layernorm_epsilon": shape.layernorm_epsilon,
        "multi_query_attention": True,
        "multi_query_group_num": shape.multi_query_group_num,
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_layers,
        "original_rope": True,
        "padded_vocab_size": shape.padded_vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": LENGTH,
        "use_cache": True,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder with tokenizer.model")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128, help="rows of 512 tokens a step")
    parser.add_argument("--shards", type=int, default=128, help="of 2048 rows, made in advance")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()

    began = time.perf_counter()
    tokenizer_path = arguments.out / "tokenizer.model"
    rows = make_rows(arguments.corpus, tokenizer_path, arguments.shards, arguments.processes)
    held_out = read_corpus(arguments.corpus, held_out=True)
    evaluation = make_shard("evaluation", held_out, tokenizer_path, 512)
    filled = float((rows.segments > 0).mean())
    print(
        f"{len(rows.ids)} rows, {filled:.3f} filled, {time.perf_counter() - began:.0f} s",
        flush=True,
    )

    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    shape = Shape(Tokenizer(tokenizer_path).padded_vocab_size, num_layers=arguments.layers)
    model = Glm(shape).to(arguments.device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, rows, arguments)
    losses = evaluate(model, evaluation, arguments.device)
    print(json.dumps(losses))

    weights = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, arguments.out / "model.safetensors", metadata={"format": "pt"})
    write_config(shape, arguments.out / "config.json")


if __name__ == "__main__":
    main()
