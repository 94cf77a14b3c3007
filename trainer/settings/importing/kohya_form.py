"""kohya_ss' LoRA form (v26.0.0), as data: what its fields hold before a file is opened, and where each one goes.

A file that leaves a field out means what the form holds. Fields for other models than Stable Diffusion and FLUX.1 are
not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORM: Mapping[str, object] = {
    "LoRA_type": "Standard",
    "LyCORIS_preset": "full",
    "adaptive_noise_scale": 0,
    "additional_parameters": "",
    "block_alphas": "",
    "block_dims": "",
    "block_lr_zero_threshold": "",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "bypass_mode": False,
    "cache_latents": True,
    "cache_latents_to_disk": False,
    "caption_dropout_every_n_epochs": 0,
    "caption_dropout_rate": 0,
    "caption_extension": ".txt",
    "clip_skip": 1,
    "color_aug": False,
    "constrain": 0.0,
    "conv_alpha": 1,
    "conv_block_alphas": "",
    "conv_block_dims": "",
    "conv_dim": 1,
    "dataset_config": "",
    "debiased_estimation_loss": False,
    "decompose_both": False,
    "dim_from_weights": False,
    "dora_wd": False,
    "down_lr_weight": "",
    "enable_bucket": True,
    "epoch": 1,
    "factor": -1,
    "flip_aug": False,
    "fp8_base": False,
    "full_bf16": False,
    "full_fp16": False,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "highvram": False,
    "huber_c": 0.1,
    "huber_scale": 1.0,
    "huber_schedule": "snr",
    "ip_noise_gamma": 0,
    "ip_noise_gamma_random_strength": False,
    "keep_tokens": 0,
    "learning_rate": 0.0001,
    "log_config": False,
    "log_tracker_config": "",
    "log_tracker_name": "",
    "log_with": "",
    "logging_dir": "",
    "loraplus_lr_ratio": 0,
    "loraplus_text_encoder_lr_ratio": 0,
    "loraplus_unet_lr_ratio": 0,
    "loss_type": "l2",
    "lr_scheduler": "cosine",
    "lr_scheduler_args": "",
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "lr_scheduler_type": "",
    "lr_warmup": 10,
    "lr_warmup_steps": 0,
    "masked_loss": False,
    "max_bucket_reso": 2048,
    "max_data_loader_n_workers": 0,
    "max_grad_norm": 1.0,
    "max_resolution": "512,512",
    "max_timestep": 1000,
    "max_token_length": 75,
    "max_train_epochs": 0,
    "max_train_steps": 1600,
    "mem_eff_attn": False,
    "metadata_author": "",
    "metadata_description": "",
    "metadata_license": "",
    "metadata_tags": "",
    "metadata_title": "",
    "mid_lr_weight": "",
    "min_bucket_reso": 256,
    "min_snr_gamma": 0,
    "min_timestep": 0,
    "mixed_precision": "fp16",
    "module_dropout": 0.0,
    "multires_noise_discount": 0.3,
    "multires_noise_iterations": 0,
    "network_alpha": 1,
    "network_dim": 8,
    "network_dropout": 0,
    "network_weights": "",
    "noise_offset": 0,
    "noise_offset_random_strength": False,
    "noise_offset_type": "Original",
    "optimizer": "AdamW8bit",
    "optimizer_args": "",
    "output_dir": "",
    "output_name": "last",
    "persistent_data_loader_workers": False,
    "pretrained_model_name_or_path": "",
    "prior_loss_weight": 1.0,
    "random_crop": False,
    "rank_dropout": 0,
    "rank_dropout_scale": False,
    "reg_data_dir": "",
    "rescaled": False,
    "resume": "",
    "sample_every_n_epochs": 0,
    "sample_every_n_steps": 0,
    "sample_prompts": "",
    "sample_sampler": "euler_a",
    "save_every_n_epochs": 1,
    "save_every_n_steps": 0,
    "save_last_n_epochs": 0,
    "save_last_n_epochs_state": 0,
    "save_last_n_steps": 0,
    "save_last_n_steps_state": 0,
    "save_model_as": "safetensors",
    "save_precision": "fp16",
    "save_state": False,
    "save_state_on_train_end": False,
    "scale_v_pred_loss_like_noise_pred": False,
    "scale_weight_norms": 0,
    "sdxl": False,
    "sdxl_cache_text_encoder_outputs": False,
    "sdxl_no_half_vae": False,
    "seed": 0,
    "shuffle_caption": False,
    "skip_cache_check": False,
    "t5xxl_lr": 0,
    "text_encoder_lr": 0.0001,
    "train_batch_size": 1,
    "train_data_dir": "",
    "train_inpainting": False,
    "train_norm": False,
    "train_on_input": True,
    "training_comment": "",
    "unet_lr": 0.0001,
    "unit": 1,
    "up_lr_weight": "",
    "use_cp": False,
    "use_scalar": False,
    "use_tucker": False,
    "v2": False,
    "v_parameterization": False,
    "v_pred_like_loss": 0,
    "vae": "",
    "vae_batch_size": 0,
    "wandb_api_key": "",
    "wandb_run_name": "",
    "weighted_captions": False,
    "xformers": "xformers",
}

FLUX: Mapping[str, object] = {
    "ae": "",
    "apply_t5_attn_mask": False,
    "blocks_to_swap": 0,
    "clip_l": "",
    "cpu_offload_checkpointing": False,
    "discrete_flow_shift": 3.0,
    "double_blocks_to_swap": 0,
    "flux1_cache_text_encoder_outputs": False,
    "flux1_cache_text_encoder_outputs_to_disk": False,
    "fp8_base_unet": False,
    "guidance_scale": 3.5,
    "img_attn_dim": "",
    "img_mlp_dim": "",
    "img_mod_dim": "",
    "in_dims": "",
    "mem_eff_save": False,
    "model_prediction_type": "sigma_scaled",
    "single_blocks_to_swap": 0,
    "single_dim": "",
    "single_mod_dim": "",
    "split_mode": False,
    "split_qkv": False,
    "t5xxl": "",
    "t5xxl_max_token_length": 512,
    "timestep_sampling": "sigma",
    "train_double_block_indices": "all",
    "train_single_block_indices": "all",
    "train_t5xxl": False,
    "txt_attn_dim": "",
    "txt_mlp_dim": "",
    "txt_mod_dim": "",
}
"""Fields of the form that count where its box for FLUX.1 is ticked."""

ANIMA: Mapping[str, object] = {
    "anima_cache_text_encoder_outputs": False,
    "anima_cache_text_encoder_outputs_to_disk": False,
    "anima_discrete_flow_shift": 1.0,
    "anima_llm_adapter_path": "",
    "anima_qwen3": "",
    "anima_qwen3_max_token_length": 512,
    "anima_sigmoid_scale": 1.0,
    "anima_t5_max_token_length": 512,
    "anima_t5_tokenizer_path": "",
    "anima_timestep_sampling": "sigmoid",
    "anima_vae": "",
}
"""The same for its box for Anima; each is the argument of sd-scripts behind `OF_ANIMA`."""
OF_ANIMA = "anima_"

BOXES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "flux1_checkbox": ("flux", FLUX),
    "anima_checkbox": ("anima", ANIMA),
}
"""{box: the family that it is for, and the fields that count where it is ticked}."""

WHOLE_NUMBERS: Mapping[str, int] = {
    "caption_dropout_every_n_epochs": 0,
    "clip_skip": 0,
    "epoch": 0,
    "gradient_accumulation_steps": 0,
    "keep_tokens": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_warmup": 0,
    "max_data_loader_n_workers": 0,
    "max_token_length": 75,
    "max_train_epochs": 0,
    "max_train_steps": 0,
    "save_every_n_epochs": 0,
    "seed": 0,
}
"""Fields that it makes whole numbers of on opening a file, and what it takes where that fails."""

NUMBERS: Mapping[str, float] = {
    "adaptive_noise_scale": 0.0,
    "learning_rate": 0.0,
    "lr_scheduler_power": 1.0,
    "noise_offset": 0.0,
    "text_encoder_lr": 0.0,
    "unet_lr": 0.0,
}
"""The same of numbers."""

RENAMED: Mapping[str, str] = {"optimizer": "optimizer_type", "max_resolution": "resolution"}
"""{field: argument of sd-scripts} where only the name differs."""

ELSEWHERE = (
    "LoRA_type",
    "LyCORIS_preset",
    "additional_parameters",
    "flux1_cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs_to_disk",
    "lr_scheduler_args",
    "lr_warmup",
    "lr_warmup_steps",
    "noise_offset",
    "noise_offset_random_strength",
    "adaptive_noise_scale",
    "multires_noise_iterations",
    "multires_noise_discount",
    "optimizer_args",
    "sdxl",
    "sdxl_cache_text_encoder_outputs",
    "sdxl_no_half_vae",
    "t5xxl_lr",
    "text_encoder_lr",
    "unet_lr",
    "xformers",
)
"""Fields that become something else than an argument of their name, in `kohya_json`."""

_DROPOUTS = ("rank_dropout", "module_dropout")
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
    *_DROPOUTS,
)
_CONV = ("conv_dim", "conv_alpha")
_TURNED = (*_CONV, "use_tucker", *_DROPOUTS, "rank_dropout_scale")
_MATRICES = (*_TURNED, "bypass_mode", "dora_wd", "use_scalar")


_OF_FLUX = (
    *("img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim"),
    *("single_mod_dim", "in_dims", "train_double_block_indices", "train_single_block_indices"),
    *("split_qkv", "train_t5xxl"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of LoRA becomes: `network_module`, LyCORIS' algo, and the fields that go into network_args.

    `always` go whatever they hold, `filled` where they are not empty, off or 0.
    """

    module: str
    algo: str = ""
    always: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()


def _lycoris(algo: str, *fields: str) -> Kind:
    return Kind("lycoris.kohya", algo, ("LyCORIS_preset", *fields))


KINDS: Mapping[str, Kind] = {
    "Standard": Kind("networks.lora", filled=_BLOCKS),
    "Kohya LoCon": Kind("networks.lora", always=_CONV, filled=_BLOCKS),
    "LoRA-FA": Kind("networks.lora_fa", filled=_BLOCKS),
    "Kohya DyLoRA": Kind("networks.dylora", filled=(*_CONV, *_BLOCKS, "unit")),
    "Kohya LoHa": Kind("networks.loha", filled=(*_CONV, "use_tucker", *_DROPOUTS)),
    "Kohya LoKr": Kind("networks.lokr", always=("factor",), filled=(*_CONV, "use_tucker", *_DROPOUTS)),
    "LyCORIS/LoCon": _lycoris("locon", *_MATRICES, "train_norm"),
    "LyCORIS/LoHa": _lycoris("loha", *_MATRICES, "train_norm"),
    "LyCORIS/LoKr": _lycoris("lokr", *_MATRICES, "factor", "use_cp", "decompose_both", "train_norm"),
    "LyCORIS/GLoRA": _lycoris("glora", *_TURNED, "train_norm"),
    "LyCORIS/DyLoRA": _lycoris("dylora", *_CONV, "use_tucker", "unit", *_DROPOUTS, "train_norm"),
    "LyCORIS/iA3": _lycoris("ia3", *_CONV, "train_on_input"),
    "LyCORIS/BOFT": _lycoris("boft", *_TURNED, "train_norm"),
    "LyCORIS/Diag-OFT": _lycoris("diag-oft", *_TURNED, "constrain", "rescaled", "train_norm"),
    "LyCORIS/Native Fine-Tuning": _lycoris("full", *_DROPOUTS, "rank_dropout_scale", "train_norm"),
    "Flux1": Kind("networks.lora_flux", filled=(*_OF_FLUX, *_DROPOUTS)),
    "Flux1 OFT": Kind("networks.oft_flux"),
    "Anima": Kind("networks.lora_anima", filled=_DROPOUTS),
    "Lumina": Kind("networks.lora_lumina", filled=_DROPOUTS),
    "HunyuanImage-2.1": Kind("networks.lora_hunyuan_image", filled=_DROPOUTS),
}
"""{LoRA_type: what it becomes}."""

PACKED = frozenset(field for kind in KINDS.values() for field in (*kind.always, *kind.filled))
"""Fields that go into network_args for some kind, beside those of LoRA+, which go for all."""

INSIDE: Mapping[str, str] = {"constrain": "constraint", "LyCORIS_preset": "preset"}
"""{field: its name inside network_args} where the two differ."""

LEGACY_KINDS = {"LoCon": "LyCORIS/LoCon"}

OTHER_MODELS = {
    "sd3_checkbox": "networks.lora_sd3",
    "flux1_checkbox": "networks.lora_flux",
    "hunyuan_image_checkbox": "networks.lora_hunyuan_image",
    "anima_checkbox": "networks.lora_anima",
    "lumina_checkbox": "networks.lora_lumina",
}
"""{field: module} of the boxes for models of other families."""
