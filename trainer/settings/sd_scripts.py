"""What of sd-scripts' LoRA trainer (v0.10.1) is no setting here, as data: what each argument does, and when nothing.

With the settings, which declare how sd-scripts has them, these are all arguments of its parser, the keys of its
dataset files, the arguments of its networks and LyCORIS', and those of kohya_ss' form that people have in files. A key
that is neither is not known here: of it nothing is said but that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from trainer.settings.section import Absence
from trainer.settings.walk import Setting


class Silent(Enum):
    """What stands in place of a metadata entry where an argument has none."""

    NO_ENTRY = "no entry"


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that is no setting here.

    `changes`: it changes what is learned or written. `neutral`: values, beside those that mean "off", with which it
    does not. `instead`: what to do in place of it. `entry`: what a LoRA file's `ss_` entry holds while it is off.
    """

    changes: bool
    neutral: tuple[object, ...] = ()
    instead: str = ""
    entry: object = Silent.NO_ENTRY

    def does_nothing(self, value: object) -> bool:
        """Say whether this value leaves everything as it is."""
        return not self.changes or is_off(value) or str(value) in map(str, self.neutral)


OFF = (None, "", 0, False, "0", "0.0", "None", "none", "False", "false")


def is_off(value: object) -> bool:
    """Say whether a value is one of the many that people write for "off"."""
    return value in OFF or value in ([], {})


def _changing(*neutral: object, instead: str = "", entry: object = Silent.NO_ENTRY) -> Argument:
    return Argument(True, neutral, instead, entry)


def _harmless(names: str, entries: Mapping[str, object] | None = None) -> dict[str, Argument]:
    return {name: Argument(False, entry=(entries or {}).get(name, Silent.NO_ENTRY)) for name in names.split()}


_FOLDERS = "name the folders with train_data_dir and reg_data_dir, or write them as [[datasets]]"
_NUMBERED = "say it in the folder's name, such as 10_sks dog, or write the folders as [[datasets]]"

_TRAINER: Mapping[str, Argument] = {
    "dataset_class": _changing(),
    "enable_ema": _changing(),
    "face_crop_aug_range": _changing(instead="cut the faces out beforehand", entry=None),
    "fp16_master_weights_and_gradients": _changing(),
    "in_json": _changing(instead=_FOLDERS),
    "initial_epoch": _changing(1),
    "initial_step": _changing(),
    "resume": _changing(instead="resume a run of this program with --resume"),
    "resume_from_huggingface": _changing(),
    "save_model_as": _changing("safetensors", instead="LoRAs are always written as .safetensors"),
    "skip_until_initial_step": _changing(),
    "train_inpainting": _changing(),
    **_harmless(
        "async_upload blocks_to_swap cache_info config_file console_log_file console_log_level console_log_simple "
        "cpu_offload_checkpointing dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout "
        "debug_dataset deepspeed disable_mmap_load_safetensors dynamo_backend fused_backward_pass highvram "
        "huggingface_path_in_repo huggingface_repo_id huggingface_repo_type huggingface_repo_visibility "
        "huggingface_token log_config log_prefix log_tracker_config log_tracker_name lowram "
        "mem_eff_attn mem_eff_save metadata_is_negative_embedding metadata_merged_from metadata_preprocessor "
        "metadata_thumbnail metadata_trigger_phrase metadata_usage_hint offload_optimizer_device "
        "offload_optimizer_nvme_path offload_param_device offload_param_nvme_path output_config "
        "persistent_data_loader_workers "
        "save_state_on_train_end save_state_to_huggingface sdpa skip_cache_check split_attn tokenizer_cache_dir "
        "wandb_api_key wandb_run_name xformers zero3_init_flag zero3_save_16bit_model zero_stage",
        {"lowram": False},
    ),
}
"""Arguments of the trainer itself. The harmless ones are about speed, memory, logs and uploads."""

_DATASETS: Mapping[str, Argument] = {
    "class_tokens": _changing(instead=_NUMBERED),
    "image_dir": _changing(instead=_FOLDERS),
    "is_reg": _changing(instead=_FOLDERS),
    "metadata_file": _changing(instead=_FOLDERS),
    "num_repeats": _changing(1, instead=_NUMBERED),
    "subsets": _changing(instead=_FOLDERS),
    **_harmless("network_multiplier"),
}
"""Keys of dataset files that are no arguments as well."""

_FORM: Mapping[str, Argument] = _harmless(
    "epoch extra_accelerate_launch_args gpu_ids main_process_port model_list multi_gpu no_token_padding "
    "noise_offset_type num_cpu_threads_per_process num_machines num_processes save_as_bool "
    "stop_text_encoder_training_pct dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph"
)
"""What kohya_ss' form writes and sd-scripts' trainer does not read, or what is about starting it."""

_OTHER_MODELS: Mapping[str, Argument] = {
    "llm_adapter_path": _changing(instead="choose a file of Anima that has its adapter inside"),
    "model_type": _changing("flux", "chroma"),
} | _harmless(
    "ae apply_lg_attn_mask attn_mode byt5 clip_g_dropout_rate clip_l_dropout_rate "
    "double_blocks_to_swap enable_scaled_pos_embed fp8_scaled fp8_vl gemma2 "
    "gemma2_max_token_length "
    "pos_emb_random_crop_rate qwen_image_vae_2d save_clip save_t5xxl "
    "single_blocks_to_swap split_mode split_qkv_blocks system_prompt t5_dropout_rate "
    "t5xxl_device t5xxl_dtype text_encoder_batch_size text_encoder_cpu "
    "training_shift unsloth_offload_checkpointing use_flash_attn use_sage_attn vae_chunk_size "
    "vae_disable_cache"
)
"""Arguments of sd-scripts' trainers for other models. Those for Stable Diffusion read none of them."""

ARGUMENTS: Mapping[str, Argument] = {**_TRAINER, **_DATASETS, **_FORM, **_OTHER_MODELS}
"""{argument or key: what it does} of all that is no setting here."""

OF_THE_TRAINER = frozenset(_TRAINER)
"""Those that are arguments of its trainer's parser, or were."""

NETWORK_ARGUMENTS: Mapping[str, Argument] = {
    "algo": _changing("lora", "locon", instead="give network_module as lycoris.kohya with it"),
    "block_size": _changing(),
    "bypass_mode": _changing(),
    "ggpo_beta": _changing(),
    "ggpo_sigma": _changing(),
    "train_norm": _changing(),
    "unit": _changing(),
    "weight_decompose": _changing(instead="it is called dora_wd now"),
    **_harmless("dropout rank_dropout_scale verbose"),
}
"""{name: what it does} of what stands in `network_args` of sd-scripts' networks and LyCORIS'.

The harmless ones say how another one of them is meant, and do nothing without it.
"""


_SWITCHES = (
    "alpha_mask async_upload cache_info color_aug console_log_simple cpu_offload_checkpointing "
    "ddp_gradient_as_bucket_view ddp_static_graph debug_dataset deepspeed fp16_master_weights_and_gradients "
    "fused_backward_pass highvram log_config lowram masked_loss mem_eff_attn output_config "
    "persistent_data_loader_workers random_crop resume_from_huggingface save_state save_state_on_train_end "
    "save_state_to_huggingface sdpa skip_cache_check skip_until_initial_step train_inpainting xformers zero3_init_flag "
    "zero3_save_16bit_model"
)


def switches(known: Mapping[str, Setting]) -> frozenset[str]:
    """Return the arguments that stand without a value: those of settings, and those of what is none here."""
    ours = {setting.argument for setting in known.values() if setting.kind == "switch"} - {""}
    values = {name for setting in known.values() if setting.sd_scripts for name in setting.sd_scripts.switches}
    return frozenset(_SWITCHES.split()) | ours | values


_REASONS: Mapping[str, str] = {
    r"blocks_to_swap|split_mode": "becomes `streamed_weights` in recipes for transformers: a share for each block",
    r"deepspeed|zero\w+|offload_(optimizer|param)_\w+": "for DeepSpeed",
    r"ddp_\w+": "for several computers; `torchrun` starts this program on several GPUs",
    r"huggingface_\w+|async_upload|save_state_to_huggingface|resume_from_huggingface": "uploads to a hub",
    r"wandb_\w+|log_\w+|console_log_\w+": "about logs; `log_with` writes them for TensorBoard",
    r"metadata_(?!file)\w+": "an entry of the file's metadata that no loader reads",
    r"xformers|sdpa|mem_eff_attn|split_attn|attn_mode|use_\w+_attn": "attention is PyTorch's own, chosen by the device",
    r"dynamo_\w+|highvram|lowram|\w*_to_swap|cpu_offload\w*|disable_mmap\w*|fused_\w+|mem_eff_save|"
    r"persistent_data\w*|skip_cache_check|cache_info|tokenizer_cache_dir": "about speed or memory",
    r"save_state\w*|save_last_n_\w+_state": "a state is always kept, the newest two of a run",
    r"config_file|output_config|debug_dataset": "for looking at a file of settings or at pictures; `--check` does",
    r"initial_\w+|skip_until_initial_step": "a run of this program is resumed exactly, with `--resume`",
    r"fp16_master_weights_and_gradients|use_ema|enable_ema": "left over in its parser, and read by no trainer of LoRAs",
    r"dataset_class": "names a class of its own code",
    r"train_inpainting": "for models with a mask beside the picture, which are not trained here",
    r"face_crop_aug_range": "cuts at random around faces whose place stands in the picture's name",
    r"in_json|image_dir|is_reg|metadata_file|subsets": "says where pictures are, of one dataset",
    r"class_tokens|num_repeats": "said of a folder",
    r"save_model_as": "one kind of file is written, that runs nothing when it is loaded",
    r"llm_adapter_path": "a part of Anima from a file of its own",
    r"model_type": "which of the models that its trainer for FLUX.1 knows; here that is model_family",
    r"network_multiplier": "read by no trainer of LoRAs",
    r"dataset_repeats": "becomes num_repeats of the datasets",
    r"algo": "another kind of network",
    r"block_size|unit": "of DyLoRA, another kind of network",
    r"bypass_mode": "another forward than the one by weights, with other rounding",
    r"ggpo_\w+": "disturbs weights while it trains, another way of training",
    r"resume": "a state of sd-scripts is none of this program",
    r"weight_decompose": "a former name",
    r"train_norm": "trains layers of norm themselves, which no LoRA here does",
    r"dropout|rank_dropout_scale|verbose": "says how another argument is meant, and nothing without it",
}
"""{pattern of names: why an argument is no setting here}."""


_GROUPS = (
    (_OTHER_MODELS, "of its trainers for other models, and read by none of those for the models here"),
    (_FORM, "of kohya_ss' form, about how the trainer is started or read by none"),
    (_TRAINER, "changes nothing about the result"),
)
"""(arguments, why they are no settings here) where nothing else is said of one."""


def reason(name: str, lacking: Argument) -> str:
    """Return why an argument is no setting here, and what to do in its place."""
    known = next((why for pattern, why in _REASONS.items() if re.fullmatch(pattern, name)), "")
    otherwise = next((why for group, why in _GROUPS if group.get(name) is lacking), "not supported")
    return "; ".join(part for part in (known or otherwise, lacking.instead) if part)


def argument(key: str) -> Argument | None:
    """Return what is known of a key that is no setting; None where nothing is."""
    return ARGUMENTS.get(key) or NETWORK_ARGUMENTS.get(key)


def entries() -> dict[str, object]:
    """Return {metadata entry: value} of the arguments that this program lacks, as if they were off."""
    return {f"ss_{key}": each.entry for key, each in ARGUMENTS.items() if each.entry is not Silent.NO_ENTRY}


def defaults(known: Mapping[str, Setting], process: str) -> dict[str, object]:
    """Return {key: default of sd-scripts} of the settings that a recipe of sd-scripts means when it leaves them out."""
    return {
        key: setting.sd_scripts.default
        for key, setting in known.items()
        if setting.sd_scripts is not None
        and setting.sd_scripts.matters
        and has_default(setting)
        and setting.belongs_to(process)
    }


def has_default(setting: Setting) -> bool:
    """Say whether sd-scripts has a default for a setting: it has none for what is required, or random."""
    return setting.sd_scripts is not None and not isinstance(setting.sd_scripts.default, Absence)
