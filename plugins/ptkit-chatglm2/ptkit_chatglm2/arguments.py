"""Every argument of the published ptuning/main.py, and what it is in a recipe.

They are those of its arguments.py and of Seq2SeqTrainingArguments in transformers 4.30.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effect = Literal["key", "not needed", "never read", "lost"]


@dataclass(frozen=True)
class Argument:
    """One or more arguments with the same fate.

    ``names``: without dashes, blanks between them. ``key``: the key of the recipe that it sets.
    ``effect``: "key"; "not needed" where ptkit has no use for it; "never read" where the published
    code declares it and no more; "lost" where it changes a published result and ptkit can't follow.
    ``neutral``: values, besides the published default, that change nothing.
    """

    names: str
    effect: Effect
    note: str = ""
    key: str = ""
    neutral: tuple[str, ...] = ()


def _key(names: str, key: str, note: str = "") -> Argument:
    return Argument(names, "key", note, key)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARGUMENTS: tuple[Argument, ...] = (
    _key("model_name_or_path", "backbone.source", "a name on a hub is to be downloaded first"),
    _key("quantization_bit", "backbone.quantization", "4 is int4, 8 is int8"),
    _key("fp16 bf16", "backbone.dtype", "the published base is float16 with or without them"),
    _key("pre_seq_len", "prefix.length", "without it the published code trains all weights"),
    _key("prefix_projection", "prefix.projection"),
    _key("train_file", "dataset.train"),
    _key("validation_file", "dataset.validation", "read by the published code with do_eval only"),
    _key("test_file", "dataset.test", "read by the published code with do_predict only"),
    _key("prompt_column", "dataset.prompt_column"),
    _key("response_column", "dataset.response_column"),
    _key("history_column", "dataset.history_column"),
    _key("max_train_samples", "dataset.limit.train"),
    _key("max_eval_samples", "dataset.limit.validation"),
    _key("max_predict_samples", "dataset.limit.test"),
    _key("max_source_length", "task.max_source_tokens", "the published default is 1024"),
    _key("max_target_length", "task.max_target_tokens", "the published default is 128"),
    _key("max_steps", "train.max_steps"),
    _key("num_train_epochs", "train.epochs", "max_steps goes first; the published default is 3"),
    _key(
        "per_device_train_batch_size gradient_accumulation_steps",
        "train.batch_size",
        "their product, times the processes of the launch line; a micro-batch of 1 row gives "
        'train.loss_average = "row"',
    ),
    _key("learning_rate", "train.learning_rate", "the published default is 5e-5"),
    _key("lr_scheduler_type", "train.schedule", "linear, cosine, constant, constant_with_warmup"),
    _key("warmup_steps warmup_ratio", "train.warmup_steps", "a ratio needs max_steps"),
    _key("weight_decay", "train.weight_decay"),
    _key("adam_beta1 adam_beta2", "train.betas"),
    _key("max_grad_norm", "train.clip_norm"),
    _key("gradient_checkpointing", "train.gradient_checkpointing", "published: always on"),
    _key("eval_steps", "train.eval_every"),
    _key("save_steps", "train.save_every", "the published default is 500"),
    _key("save_total_limit", "train.keep"),
    _key("seed", "train.seed", "the draws are other ones with the same seed"),
    # ---------------------------------------------------------------------------- not needed
    Argument(
        "do_train do_eval do_predict",
        "not needed",
        "`ptkit run` trains and scores; `ptkit evaluate` and `ptkit predict` only score and answer",
    ),
    Argument(
        "ptuning_checkpoint",
        "not needed",
        "`ptkit convert` makes an adapter of it, which prefix.start trains on from",
    ),
    Argument(
        "resume_from_checkpoint", "not needed", "`ptkit run --resume` goes on with a run of ptkit"
    ),
    Argument("output_dir overwrite_output_dir", "not needed", "`ptkit run --out` names the folder"),
    Argument(
        "preprocessing_num_workers overwrite_cache cache_dir",
        "not needed",
        "rows are encoded in one pass, and nothing of another run is taken up",
    ),
    Argument(
        "predict_with_generate prediction_loss_only",
        "not needed",
        "scores are always those of generated answers, and the validation loss stands beside them",
    ),
    Argument(
        "per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size "
        "eval_accumulation_steps auto_find_batch_size group_by_length length_column_name",
        "not needed",
        "rows are packed without padding, train.tokens_per_micro_batch tokens at once",
    ),
    Argument("ignore_pad_token_for_loss", "not needed", "there is no padding to be trained on"),
    Argument(
        "generation_max_length",
        "not needed",
        "main.py overrides it; task.sampling.max_new_tokens limits an answer",
    ),
    Argument(
        "logging_dir logging_strategy logging_first_step logging_steps logging_nan_inf_filter "
        "log_level log_level_replica log_on_each_node report_to run_name disable_tqdm",
        "not needed",
        "every step is logged to the run folder",
    ),
    Argument(
        "evaluation_strategy eval_delay save_strategy save_on_each_node save_safetensors "
        "load_best_model_at_end metric_for_best_model greater_is_better",
        "not needed",
        "steps are counted, and the step with the lowest validation loss is the result",
    ),
    Argument(
        "data_seed full_determinism ignore_data_skip dataloader_drop_last dataloader_num_workers "
        "dataloader_pin_memory remove_unused_columns label_names past_index",
        "not needed",
        "the order of the rows follows from train.seed, and data is loaded by ptkit's own code",
    ),
    Argument(
        "local_rank ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_timeout deepspeed "
        "fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap sharded_ddp "
        "mp_parameters no_cuda use_mps_device xpu_backend tpu_num_cores tpu_metrics_debug use_ipex "
        "ray_scope",
        "not needed",
        "`ptkit run --device` says where; the gradients of a prefix are small enough to need no "
        "sharding",
    ),
    Argument(
        "fp16_opt_level fp16_backend half_precision_backend fp16_full_eval bf16_full_eval tf32 "
        "jit_mode_eval torchdynamo torch_compile torch_compile_backend torch_compile_mode",
        "not needed",
        "the base runs in backbone.dtype, the prefix in float32",
    ),
    Argument(
        "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo push_to_hub_model_id "
        "push_to_hub_organization push_to_hub_token use_auth_token",
        "not needed",
        "nothing is uploaded or downloaded",
    ),
    Argument(
        "debug skip_memory_metrics use_legacy_prediction_loop include_inputs_for_metrics",
        "not needed",
        "of the Trainer's inner workings",
    ),
    # ---------------------------------------------------------------------------- never read
    Argument(
        "config_name tokenizer_name use_fast_tokenizer model_revision resize_position_embeddings "
        "lang dataset_name dataset_config_name pad_to_max_length forced_bos_token "
        "generation_config sortish_sampler",
        "never read",
    ),
    # ---------------------------------------------------------------------------- lost
    Argument(
        "source_prefix", "lost", "a text in front of the prompt's template", neutral=("", "None")
    ),
    Argument(
        "num_beams generation_num_beams",
        "lost",
        "answers are decoded without beams",
        neutral=("1",),
    ),
    Argument(
        "val_max_target_length",
        "lost",
        "cuts the references that answers are scored against; ptkit scores against whole ones",
    ),
    Argument("optim", "lost", "ptkit has AdamW", neutral=("adamw_hf", "adamw_torch")),
    Argument("adafactor", "lost", "ptkit has AdamW", neutral=("False", "false")),
    Argument("optim_args", "lost", "ptkit has AdamW", neutral=("",)),
    Argument("adam_epsilon", "lost", "ptkit has 1e-8", neutral=("1e-8", "1e-08")),
    Argument("label_smoothing_factor", "lost", "labels are whole", neutral=("0", "0.0")),
)

BY_NAME = {name: argument for argument in ARGUMENTS for name in argument.names.split()}

BOOLEANS = _names(
    "adafactor auto_find_batch_size bf16 bf16_full_eval dataloader_drop_last dataloader_pin_memory "
    "ddp_find_unused_parameters disable_tqdm do_eval do_predict do_train fp16 fp16_full_eval "
    "full_determinism gradient_checkpointing greater_is_better group_by_length hub_private_repo "
    "ignore_data_skip ignore_pad_token_for_loss include_inputs_for_metrics jit_mode_eval "
    "load_best_model_at_end log_on_each_node logging_first_step logging_nan_inf_filter no_cuda "
    "overwrite_cache overwrite_output_dir pad_to_max_length predict_with_generate "
    "prediction_loss_only prefix_projection push_to_hub remove_unused_columns "
    "resize_position_embeddings save_on_each_node save_safetensors skip_memory_metrics "
    "sortish_sampler tf32 torch_compile tpu_metrics_debug use_auth_token use_fast_tokenizer "
    "use_ipex use_legacy_prediction_loop use_mps_device"
)
"""Those that may stand without a value."""

LISTS = _names("label_names report_to debug fsdp sharded_ddp")
"""Those that take several values."""

_EFFECTS = {
    "not needed": "not needed: ",
    "never read": "declared by the published code, and never read",
    "lost": "changes a published result; no such setting: ",
}


def table() -> str:
    """`ARGUMENTS` as the Markdown table of the README, a row a line."""
    lines = ["| published argument | in a recipe |", "|---|---|"]
    for argument in ARGUMENTS:
        names = ", ".join(f"`{name}`" for name in argument.names.split())
        if argument.key:
            meaning = f"`{argument.key}`" + (f"; {argument.note}" if argument.note else "")
        else:
            meaning = _EFFECTS[argument.effect] + argument.note
        lines.append(f"| {names} | {meaning} |")
    return "\n".join(lines)
