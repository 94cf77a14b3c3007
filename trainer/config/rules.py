"""Rules that cross settings. Each is a function on the configuration that yields the problems it finds.

A rule runs only if every setting that it reads holds a usable value. Only what cannot work is a problem; what is
merely unwise is said by `trainer.advice`.
"""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.adapters import KINDS
from trainer.config.limits import LimitsSection
from trainer.config.lycoris import LycorisSection
from trainer.config.pictures import LATENT_STEP
from trainer.config.rates import RatesSection
from trainer.config.training_config import TrainingConfig, assumed_parts, rates, resolution_size, schedule_of
from trainer.ground.errors import Problem
from trainer.optimizers import OPTIMIZERS, kind_of
from trainer.settings.problems import shown
from trainer.targets import DENOISER, TEXT, names_of

_PLAIN = "lora"
"""The kind of adapter that all programs read."""

Check = Callable[[TrainingConfig], Iterator[Problem]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A check and the keys of the settings that it reads."""

    keys: tuple[str, ...]
    check: Check


RULES: list[Rule] = []


def rule(*keys: str) -> Callable[[Check], Check]:
    """Register a check of the settings named."""

    def register(check: Check) -> Check:
        RULES.append(Rule(keys, check))
        return check

    return register


def _rates(config: TrainingConfig) -> dict[str, list[float]]:
    """Return the rates above 0 by the role of the part; rules look before it is known what the model has."""
    parts = assumed_parts(config)
    found = rates(config, parts)
    return {role: [found[name] for name in names_of(parts, role) if name in found] for role in (DENOISER, TEXT)}


def one_rate(optimizer_type: str) -> bool:
    """Say whether an optimizer finds one step size for all, so that every part must have the same rate."""
    return kind_of(optimizer_type).one_rate


@rule("max_train_epochs", "max_train_steps")
def length_is_set(config: TrainingConfig) -> Iterator[Problem]:
    if config.training.max_train_epochs is None and config.training.max_train_steps is None:
        yield Problem("max_train_epochs", "the length of training is not set; give max_train_epochs, such as 10.")


@rule("train_data_dir", "reg_data_dir")
def folders_differ(config: TrainingConfig) -> Iterator[Problem]:
    pictures, regularisation = config.dataset.train_data_dir, config.dataset.reg_data_dir
    if pictures and os.path.normpath(pictures) == os.path.normpath(regularisation or "."):
        message = f"{shown(regularisation)} is train_data_dir too; give a folder of other pictures, or leave it empty."
        yield Problem("reg_data_dir", message, regularisation)


@rule("resolution", "enable_bucket")
def resolution_fits_the_latents(config: TrainingConfig) -> Iterator[Problem]:
    if config.dataset.enable_bucket or not any(side % LATENT_STEP for side in resolution_size(config)):
        return
    message = (
        f"{config.dataset.resolution} cannot be used without buckets: each side must be divisible by "
        f"{LATENT_STEP}; round it, or set enable_bucket to true."
    )
    yield Problem("resolution", message, config.dataset.resolution)


@rule("resolution", "enable_bucket", "bucket_reso_steps")
def bucket_step_fits(config: TrainingConfig) -> Iterator[Problem]:
    width, height = resolution_size(config)
    step = config.dataset.bucket_reso_steps
    if config.dataset.enable_bucket and step * step > width * height:
        message = f"{step} is too large for a resolution of {config.dataset.resolution}: no bucket would be left."
        yield Problem("bucket_reso_steps", f"{message} Choose 64, or {LATENT_STEP} at the least.", step)


@rule("resolution", "enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
def buckets_hold_the_resolution(config: TrainingConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if not dataset.enable_bucket or dataset.bucket_no_upscale:
        return
    step = dataset.bucket_reso_steps
    smallest = dataset.min_bucket_reso // step * step
    largest = -(-dataset.max_bucket_reso // step) * step
    sides = resolution_size(config)
    if min(sides) < smallest:
        message = (
            f"{dataset.min_bucket_reso} is above the resolution {dataset.resolution}; choose {min(sides)} or less."
        )
        yield Problem("min_bucket_reso", message, dataset.min_bucket_reso)
    if max(sides) > largest:
        message = (
            f"{dataset.max_bucket_reso} is below the resolution {dataset.resolution}; choose {max(sides)} or more."
        )
        yield Problem("max_bucket_reso", message, dataset.max_bucket_reso)


@rule("network_train_unet_only", "network_train_text_encoder_only")
def only_one_only(config: TrainingConfig) -> Iterator[Problem]:
    if config.network.network_train_unet_only and config.network.network_train_text_encoder_only:
        message = "both this and network_train_unet_only are true; set both to false to train both parts."
        yield Problem("network_train_text_encoder_only", message, True)


@rule("learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only")
def something_is_trained(config: TrainingConfig) -> Iterator[Problem]:
    network = config.network
    if any(_rates(config).values()) or (network.network_train_unet_only and network.network_train_text_encoder_only):
        return
    message = "no part is trained, since every part in use has a rate of 0; set learning_rate above 0, such as 1e-4."
    yield Problem("learning_rate", message, config.optimizer.learning_rate)


@rule(
    "optimizer_type",
    "learning_rate",
    "unet_lr",
    "text_encoder_lr",
    "network_train_unet_only",
    "network_train_text_encoder_only",
)
def one_rate_for_all(config: TrainingConfig) -> Iterator[Problem]:
    name = config.optimizer.optimizer_type
    found = _rates(config)
    if not one_rate(name) or len({*found[DENOISER], *found[TEXT]}) <= 1:
        return
    encoders = set(found[TEXT])
    key = "text_encoder_lr" if encoders != {config.optimizer.learning_rate} else "unet_lr"
    value = getattr(config.optimizer, key)
    other = max(found[DENOISER] or encoders) if key == "text_encoder_lr" else max(encoders)
    message = (
        f"{shown(value)} is another rate than the {other:g} of the other part, but {name} has one rate for all; "
        f"leave {key} out, or set it to 0 to not train that part."
    )
    yield Problem(key, message, value, rate_of_one(config))


def rate_of_one(config: TrainingConfig) -> dict[str, object]:
    """Return the settings that give every part that is trained a rate of 1, as methods with one rate want it."""
    optimizer = config.optimizer
    remedy: dict[str, object] = {"learning_rate": 1.0}
    if optimizer.unet_lr:
        remedy["unet_lr"] = None
    encoders = optimizer.text_encoder_lr
    if isinstance(encoders, tuple):
        remedy["text_encoder_lr"] = [1.0 if rate else 0.0 for rate in encoders]
    elif encoders:
        remedy["text_encoder_lr"] = 1.0
    return remedy


@rule("optimizer_type", "optimizer_args")
def optimizer_arguments(config: TrainingConfig) -> Iterator[Problem]:
    arguments = config.optimizer.optimizer_args
    for message in kind_of(config.optimizer.optimizer_type).problems(arguments):
        yield Problem("optimizer_args", f"{message}.", list(arguments))


@rule(
    "optimizer_type",
    "learning_rate",
    "lr_scheduler",
    "lr_scheduler_type",
    "lr_scheduler_args",
    "lr_scheduler_min_lr_ratio",
    "lr_warmup_steps",
    "lr_decay_steps",
    "lr_scheduler_num_cycles",
    "lr_scheduler_power",
    "lr_scheduler_timescale",
)
def schedule_arguments(config: TrainingConfig) -> Iterator[Problem]:
    given = list(config.optimizer.lr_scheduler_args)
    for message in schedule_of(config, 0).problems():
        yield Problem("lr_scheduler_args", f"{message}.", given)


@rule("optimizer_type", "optimizer_args", "lr_scheduler", "lr_scheduler_type")
def adafactor_schedules_itself(config: TrainingConfig) -> Iterator[Problem]:
    optimizer = config.optimizer
    if optimizer.lr_scheduler != "adafactor" or optimizer.lr_scheduler_type:
        return
    if kind_of(optimizer.optimizer_type).acting_rate(1.0, optimizer.optimizer_args) is not None:
        message = (
            "is for Adafactor where it takes its rate from the step count; set optimizer_type to Adafactor with "
            "relative_step=True in optimizer_args, or choose another schedule."
        )
        yield Problem("lr_scheduler", f"'adafactor' {message}", "adafactor", {"lr_scheduler": "constant_with_warmup"})


@rule("use_ema", "optimizer_type")
def one_average_is_enough(config: TrainingConfig) -> Iterator[Problem]:
    name = config.optimizer.optimizer_type
    if config.saving.use_ema and kind_of(name).schedule_free:
        message = f"true is too much with {name}, which saves an average already; set it to false."
        yield Problem("use_ema", message, True, {"use_ema": False})


@rule("noise_offset", "adaptive_noise_scale")
def adaptive_scale_needs_an_offset(config: TrainingConfig) -> Iterator[Problem]:
    scale = config.noise.adaptive_noise_scale
    if scale is not None and config.noise.noise_offset is None:
        message = f"{scale:g} has nothing to adapt; set noise_offset too, such as 0.05, or leave this out."
        yield Problem("adaptive_noise_scale", message, scale)


@rule("min_timestep", "max_timestep")
def timesteps_in_order(config: TrainingConfig) -> Iterator[Problem]:
    lowest, highest = config.noise.min_timestep, config.noise.max_timestep
    if lowest > highest:
        yield Problem("min_timestep", f"{lowest} is above max_timestep {highest}; swap them.", lowest)


@rule("full_bf16", "full_fp16", "mixed_precision")
def full_half_precision_fits(config: TrainingConfig) -> Iterator[Problem]:
    training = config.training
    if training.full_bf16 and training.full_fp16:
        yield Problem("full_fp16", "full_bf16 is true too; set one of the two to false.", True)
    for key, precision in (("full_bf16", "bf16"), ("full_fp16", "fp16")):
        if getattr(training, key) and training.mixed_precision not in ("auto", precision):
            message = (
                f"true needs mixed_precision {shown(precision)}, not {shown(training.mixed_precision)}; "
                "set it so, or set this to false."
            )
            yield Problem(key, message, True)


@rule("full_fp16", "optimizer_type")
def statistics_survive_fp16(config: TrainingConfig) -> Iterator[Problem]:
    name = config.optimizer.optimizer_type
    if config.training.full_fp16 and not kind_of(name).float16:
        *others, last = (kind.name for kind in OPTIMIZERS.values() if kind.float16)
        able = f"{', '.join(others)} or {last}"
        message = (
            f"{name} would keep what it remembers of gradients in fp16, for which that is too small; choose {able} "
            "as optimizer_type, or set this to false."
        )
        yield Problem("full_fp16", message, True)


@rule("v_parameterization", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss")
def prediction_type_agrees(config: TrainingConfig) -> Iterator[Problem]:
    loss, velocity = config.loss, config.model.v_parameterization
    if loss.scale_v_pred_loss_like_noise_pred and not velocity:
        message = "true is for v-prediction models only; set v_parameterization too if yours is one, or leave this out."
        yield Problem("scale_v_pred_loss_like_noise_pred", message, True)
    if loss.v_pred_like_loss is not None and velocity:
        message = f"{loss.v_pred_like_loss:g} is for models that predict noise; leave this out with v_parameterization."
        yield Problem("v_pred_like_loss", message, loss.v_pred_like_loss)


@rule("network_type", *LimitsSection.model_fields, *RatesSection.model_fields)
def limits_fit_the_kind(config: TrainingConfig) -> Iterator[Problem]:
    kind, sections = config.network.network_type, (config.limits, config.rates)
    for section in sections:
        for key in sorted(KINDS[kind].without.intersection(type(section).model_fields)):
            value = getattr(section, key)
            if value is None:
                continue
            kinds = " or ".join(name for name, spec in KINDS.items() if key not in spec.without)
            way_out = f"set network_type to {kinds}, or leave this out."
            yield Problem(key, f"{shown(value)} has no effect with network_type {kind}; {way_out}", value)


@rule("optimizer_type", *RatesSection.model_fields)
def one_rate_within_the_adapter(config: TrainingConfig) -> Iterator[Problem]:
    name = config.optimizer.optimizer_type
    keys = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "down_lr_weight",
            "mid_lr_weight", "up_lr_weight", "network_reg_lrs")  # fmt: skip
    for key in keys if one_rate(name) else ():
        value = getattr(config.rates, key)
        if value:
            message = f"{shown(value)} gives parts of the adapter other rates, but {name} has one rate for all; "
            yield Problem(key, f"{message}leave this out, or choose another optimizer.", value)


@rule("stop_text_encoder_training", "learning_rate", "unet_lr", "network_train_text_encoder_only")
def something_is_trained_to_the_end(config: TrainingConfig) -> Iterator[Problem]:
    until = config.rates.stop_text_encoder_training
    if until and not _rates(config)[DENOISER]:
        message = f"{until:g} would end all training, since the UNet is not trained; set max_train_steps in its place."
        yield Problem("stop_text_encoder_training", message, until)


@rule("init_lora_weights", "network_type", "network_weights", "quantize_base", *LimitsSection.model_fields)
def a_start_goes_with_the_rest(config: TrainingConfig) -> Iterator[Problem]:
    start = config.network.init_lora_weights
    if not start:
        return
    reasons = {
        f"has no effect with network_type {config.network.network_type}": config.network.network_type != "lora",
        "is for a LoRA that begins anew, and network_weights is one to go on from": config.network.network_weights,
        "takes parts from the weights, which quantize_base keeps in too few bits": config.model.quantize_base != "none",
    }
    for key in LimitsSection.model_fields:
        reasons[f"makes the LoRA part of the model, which {key} would take from it"] = getattr(config.limits, key)
    for reason, holds in reasons.items():
        if holds:
            yield Problem("init_lora_weights", f"{start} {reason}; leave one of the two out.", start)


@rule("split_qkv", "network_type", "init_lora_weights")
def what_is_split_is_a_plain_lora(config: TrainingConfig) -> Iterator[Problem]:
    kind, start = config.network.network_type, config.network.init_lora_weights
    if not config.transformer.split_qkv:
        return
    if kind != _PLAIN:
        message = f"true has no effect with network_type {kind}; set network_type to lora, or leave this out."
        yield Problem("split_qkv", message, True, {"network_type": _PLAIN})
    if start:
        message = (
            f"true is for a LoRA that begins with nothing, and init_lora_weights is {start}; leave one of them out."
        )
        yield Problem("split_qkv", message, True, {"init_lora_weights": ""})


@rule("save_copy_for", "network_type")
def a_copy_is_of_a_plain_lora(config: TrainingConfig) -> Iterator[Problem]:
    kind, copy = config.network.network_type, config.metadata.save_copy_for
    if copy != "none" and kind != _PLAIN:
        message = f"{copy} has no effect with network_type {kind}; set network_type to lora, or leave this out."
        yield Problem("save_copy_for", message, copy, {"save_copy_for": "none"})


@rule("streamed_weights", "torch_compile", "init_lora_weights")
def streaming_goes_with_the_rest(config: TrainingConfig) -> Iterator[Problem]:
    share = config.memory.streamed_weights
    if share and config.training.torch_compile:
        message = "a compiler needs all weights in one place; set torch_compile to false, or streamed_weights to 0."
        yield Problem("streamed_weights", message, share, {"torch_compile": False})
    if share and config.network.init_lora_weights:
        message = "init_lora_weights changes weights while training; leave it out, or set streamed_weights to 0."
        yield Problem("streamed_weights", message, share, {"streamed_weights": 0.0})


@rule("torch_compile", "network_dropout", "rank_dropout", "module_dropout")
def chance_is_not_compiled(config: TrainingConfig) -> Iterator[Problem]:
    for key in ("network_dropout", "rank_dropout", "module_dropout"):
        value = getattr(config.limits, key)
        if value and config.training.torch_compile:
            message = f"{value:g} draws numbers in each layer, which cannot be compiled; "
            yield Problem(key, f"{message}set torch_compile to false, or leave this out.", value)


@rule("network_type", *LycorisSection.model_fields)
def options_fit_the_kind(config: TrainingConfig) -> Iterator[Problem]:
    kind, chosen = config.network.network_type, config.lycoris
    having = {name: {each.name for each in dataclasses.fields(spec)} for name, spec in KINDS.items()}
    for key, field in LycorisSection.model_fields.items():
        value = getattr(chosen, key)
        if value == field.default or key in having[kind]:
            continue
        kinds = " or ".join(name for name in KINDS if key in having[name])
        way_out = f"set network_type to {kinds}, or leave this out."
        yield Problem(key, f"{shown(value)} has no effect with network_type {kind}; {way_out}", value)


@rule("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
def alphas_of_blocks_have_ranks(config: TrainingConfig) -> Iterator[Problem]:
    for key in ("block_alphas", "conv_block_dims", "conv_block_alphas"):
        value = getattr(config.blocks, key)
        if value and not config.blocks.block_dims:
            message = f"{shown(list(value))} counts only with ranks by block; set block_dims too, or leave this out."
            yield Problem(key, message, list(value))


@rule("base_weights", "base_weights_multiplier")
def every_multiplier_has_its_file(config: TrainingConfig) -> Iterator[Problem]:
    files, given = config.network.base_weights, config.network.base_weights_multiplier
    if len(given) > len(files):
        message = f"there are {len(given)} numbers for {len(files)} files in base_weights; give one for each, or none."
        yield Problem("base_weights_multiplier", message, list(given))


@rule("network_weights", "dim_from_weights")
def weights_to_take_the_rank_from(config: TrainingConfig) -> Iterator[Problem]:
    if config.network.dim_from_weights and not config.network.network_weights:
        message = "true needs a LoRA to take the rank from; set network_weights to its path, or leave this out."
        yield Problem("dim_from_weights", message, True)


@rule(
    "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_to_disk",
    "text_encoder_lr",
    "network_train_unet_only",
    "network_train_text_encoder_only",
)
def encoded_ahead_means_not_trained(config: TrainingConfig) -> Iterator[Problem]:
    trained = _rates(config)[TEXT]
    for key in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"):
        if trained and getattr(config.text, key):
            message = (
                "true is only possible where the text encoders are not trained; set network_train_unet_only to true "
                "(or set text_encoder_lr to 0), or leave this out."
            )
            yield Problem(key, message, True)


@rule("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "token_warmup_step")
def encoded_ahead_has_no_warmup(config: TrainingConfig) -> Iterator[Problem]:
    captions, text = config.captions, config.text
    ahead = text.cache_text_encoder_outputs or text.cache_text_encoder_outputs_to_disk
    if ahead and captions.token_warmup_step:
        message = (
            f"{shown(captions.token_warmup_step)} changes captions with the step, which those encoded ahead cannot; "
            "set it to 0, or set cache_text_encoder_outputs to false."
        )
        yield Problem("token_warmup_step", message, captions.token_warmup_step)


@rule("color_aug", "random_crop", "cache_latents", "cache_latents_to_disk")
def changed_pictures_are_not_cached(config: TrainingConfig) -> Iterator[Problem]:
    cached = config.dataset.cache_latents or config.dataset.cache_latents_to_disk
    for key in ("color_aug", "random_crop"):
        if cached and getattr(config.augmentation, key):
            message = "true changes pictures each time, which cached latents cannot; set cache_latents and "
            yield Problem(key, f"{message}cache_latents_to_disk to false, or leave this out.", True)


@rule("conditioning_data_dir", "masked_loss")
def masks_are_used(config: TrainingConfig) -> Iterator[Problem]:
    folder = config.augmentation.conditioning_data_dir
    if folder and not config.augmentation.masked_loss:
        message = f"{shown(folder)} has no effect unless masked_loss is true; set that too, or leave this out."
        yield Problem("conditioning_data_dir", message, folder, {"masked_loss": True})
