"""Does prefix tuning on the frozen nano work?

``python scripts/check_prefix.py --model ptkit_nano/model --data ptkit_nano/data``

A prefix of trained keys and values a layer, given to ``GlmForCausalLM`` of transformers through a
cache; keys are not rotated and real tokens keep positions 0, 1, 2, … It stands alone, so that it
can say whether a fault is the model's or the framework's.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokens import EOS, Tokenizer
from torch import nn
from transformers import DynamicCache, GlmConfig, GlmForCausalLM


def load(folder: Path) -> GlmForCausalLM:
    """The published layout as transformers' model, in float32."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = GlmConfig(
        vocab_size=raw["padded_vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["ffn_hidden_size"],
        num_hidden_layers=raw["num_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=raw["multi_query_group_num"],
        head_dim=raw["kv_channels"],
        rms_norm_eps=raw["layernorm_epsilon"],
        attention_bias=raw["add_qkv_bias"],
        max_position_embeddings=raw["seq_length"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=EOS,
    )
    group = raw["multi_query_group_num"] * raw["kv_channels"]
    query = raw["num_attention_heads"] * raw["kv_channels"]
    names = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.encoder.layers": "model.layers",
        "transformer.output_layer": "lm_head",
        "self_attention.dense": "self_attn.o_proj",
        "dense_h_to_4h": "gate_up_proj",
        "dense_4h_to_h": "down_proj",
    }
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "query_key_value" in name:
            parts = tensor.split((query, group, group))
            for letter, part in zip("qkv", parts, strict=True):
                new = name.replace("self_attention.query_key_value", f"self_attn.{letter}_proj")
                state[new] = part.float()
        else:
            state[name] = tensor.float()
    model = GlmForCausalLM(config)
    model.load_state_dict(state)
    model.requires_grad_(requires_grad=False)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Row:
    content: str
    summary: str
    prompt: list[int]
    answer: list[int]


def read_rows(path: Path, tokenizer: Tokenizer, *, shuffled: bool = False) -> list[Row]:
    with path.open(encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    summaries = [record["summary"] for record in records]
    if shuffled:
        random.Random(0).shuffle(summaries)
    rows = []
    for record, summary in zip(records, summaries, strict=True):
        prompt = tokenizer.prompt(f"[Round 1]\n\n问：{record['content']}\n\n答：")
        rows.append(Row(record["content"], summary, prompt, tokenizer.answer(summary)))
    return rows


class Prefix(nn.Module):
    """[l, 2, g, p, d] trained numbers: keys and values of every layer."""

    def __init__(self, config: GlmConfig, length: int, std: float) -> None:
        super().__init__()
        groups, size = config.num_key_value_heads, config.head_dim
        start = torch.randn(config.num_hidden_layers, 2, groups, length, size) * std
        self.states = nn.Parameter(start)

    def cache(self, rows: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(self.states):
            cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), layer)
        return cache


def train(model: GlmForCausalLM, rows: list[Row], arguments: argparse.Namespace) -> Prefix:
    """Each row's loss is the mean over its answer; a step takes the mean over its rows."""
    device = model.device
    torch.manual_seed(arguments.seed)
    prefix = Prefix(model.config, arguments.prefix_length, arguments.std).to(device)
    optimizer = torch.optim.AdamW(prefix.parameters(), weight_decay=0.0)
    rng = random.Random(arguments.seed)
    order: list[Row] = []
    for step in range(arguments.steps):
        if len(order) < 16:
            order = rng.sample(rows, len(rows))
        chosen, order = order[:16], order[16:]
        done = step / arguments.steps
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min((step + 1) / 10, 1 - done)
        longest = max(len(row.prompt) + len(row.answer) for row in chosen)
        ids = torch.zeros(16, longest, dtype=torch.long)
        mask = torch.ones(16, arguments.prefix_length + longest, dtype=torch.long)
        labels = torch.full((16, longest), -100)
        for index, row in enumerate(chosen):
            tokens = row.prompt + row.answer
            ids[index, : len(tokens)] = torch.tensor(tokens)
            mask[index, arguments.prefix_length + len(tokens) :] = 0
            labels[index, len(row.prompt) : len(tokens)] = torch.tensor(row.answer)
        hidden = model.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=torch.arange(longest, device=device).expand(16, -1),
            past_key_values=prefix.cache(16),
        ).last_hidden_state
        targets = labels[:, 1:]
        at = targets >= 0
        weights = (1 / at.sum(1, keepdim=True)).expand_as(targets)[at].to(device)
        logits = model.lm_head(hidden[:, :-1][at.to(device)])
        losses = nn.functional.cross_entropy(logits, targets[at].to(device), reduction="none")
        loss = (losses * weights).sum() / 16
        loss.backward()
        nn.utils.clip_grad_norm_(prefix.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == arguments.steps - 1:
            print(f"  step {step} loss {loss.item():.3f}", flush=True)
    return prefix


@torch.no_grad()
def generate(
    model: GlmForCausalLM, rows: list[Row], tokenizer: Tokenizer, prefix: Prefix | None
) -> list[str]:
    """Greedy, at most 96 tokens, prompts padded on the left."""
    device = model.device
    longest = max(len(row.prompt) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    mask = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        ids[index, longest - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[index, longest - len(row.prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()
    if prefix is not None:
        cache = prefix.cache(len(rows))
        mask = nn.functional.pad(mask, (prefix.states.shape[3], 0), value=1)
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    outputs: list[list[int]] = [[] for _ in rows]
    for _ in range(96):
        hidden = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).last_hidden_state
        chosen = model.lm_head(hidden[:, -1]).argmax(-1)
        running &= chosen != EOS
        if not running.any():
            break
        for index in running.nonzero().flatten().tolist():
            outputs[index].append(int(chosen[index]))
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = nn.functional.pad(mask, (0, 1), value=1)
    last = tokenizer.pieces.vocab_size()
    return [tokenizer.pieces.decode([i for i in ids if i < last]).strip() for ids in outputs]


def make_score() -> Callable[[list[Row], list[str]], dict[str, float]]:
    """Percent: BLEU-4 of characters, ROUGE F1 of jieba's words, and the share of values used."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel("WARNING")
    rouge, smoothing = Rouge(), SmoothingFunction().method3

    def score(rows: list[Row], predictions: list[str]) -> dict[str, float]:
        sums = {"bleu-4": 0.0, "rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0, "values": 0.0}
        for row, prediction in zip(rows, predictions, strict=True):
            values = [pair.split("#")[1] for pair in row.content.split("*")[1:]]
            sums["values"] += sum(value in prediction for value in values) / len(values)
            if prediction:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sums["bleu-4"] += sentence_bleu(
                        [list(row.summary)], list(prediction), smoothing_function=smoothing
                    )
                words = (" ".join(jieba.cut(text)) for text in (prediction, row.summary))
                (result,) = rouge.get_scores(*words)
                for name in ("rouge-1", "rouge-2", "rouge-l"):
                    sums[name] += result[name]["f"]
        return {name: round(100 * value / len(rows), 2) for name, value in sums.items()}

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prefix-length", type=int, default=32)
    parser.add_argument("--std", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shuffled", action="store_true", help="answers of other rows")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score the untuned model, and one text for all rows",
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(2)

    tokenizer = Tokenizer(arguments.model / "tokenizer.model")
    model = load(arguments.model).to(arguments.device)
    rows = read_rows(arguments.data / "train.json", tokenizer, shuffled=arguments.shuffled)
    validation = read_rows(arguments.data / "validation.json", tokenizer)
    score = make_score()
    if arguments.baselines:
        before = generate(model, validation, tokenizer, None)
        print("before", score(validation, before), before[:3])
        some = validation[:50]
        constants = [(score(some, [row.summary] * len(some)), row) for row in rows[:200]]
        for name in ("bleu-4", "rouge-1", "rouge-2", "rouge-l"):
            _, row = max(constants, key=lambda pair: pair[0][name])
            full = score(validation, [row.summary] * len(validation))
            print(f"constant, best of 200 by {name}", full)
    began = time.perf_counter()
    prefix = train(model, rows, arguments)
    trained = time.perf_counter()
    after = generate(model, validation, tokenizer, prefix)
    print(f"trained {trained - began:.0f} s, generated {time.perf_counter() - trained:.0f} s")
    print("after", score(validation, after))
    for row, text in list(zip(validation, after, strict=True))[:3]:
        print(" ", row.content, "\n ", row.summary, "\n ", text)


if __name__ == "__main__":
    main()
