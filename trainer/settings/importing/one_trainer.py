"""OneTrainer's JSON: its presets, and what it saves. What means the same here is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath

from trainer.ground.errors import Problem
from trainer.settings.importing.others import (
    Carried,
    carry,
    json_of,
    number,
    one_of,
    optimizer,
    reverse,
    size,
    switch,
    text,
    whole,
)
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting

_FAMILIES = {
    "stable_diffusion_15": "sd15",
    **dict.fromkeys(("stable_diffusion_20", "stable_diffusion_20_base"), "sd2"),
    **dict.fromkeys(("stable_diffusion_21", "stable_diffusion_21_base"), "sd2"),
    "stable_diffusion_xl_10_base": "sdxl",
    "flux_dev_1": "flux",
    "chroma_1": "chroma",
    "anima": "anima",
}
_SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    **dict.fromkeys(("cosine_with_restarts", "cosine_with_hard_restarts"), "cosine_with_restarts"),
}
_PRECISIONS = {"float_16": "fp16", "bfloat_16": "bf16", "float_32": "no"}
_CHECKPOINTING = {"on": True, "cpu_offloaded": True, "off": False}
_KINDS = {"lora": "lora", "loha": "loha", "lokr": "lokr"}

_TABLE = {
    "base_model_name": Carried("pretrained_model_name_or_path", text),
    "batch_size": Carried("train_batch_size", whole),
    "gradient_accumulation_steps": Carried("gradient_accumulation_steps", whole),
    "epochs": Carried("max_train_epochs", whole),
    "resolution": Carried("resolution", size),
    "learning_rate": Carried("learning_rate", number),
    "unet.learning_rate": Carried("unet_lr", number),
    "text_encoder.learning_rate": Carried("text_encoder_lr", number),
    "text_encoder.train": Carried("network_train_unet_only", reverse),
    "unet.train": Carried("network_train_text_encoder_only", reverse),
    "learning_rate_scheduler": Carried("lr_scheduler", one_of(_SCHEDULES)),
    "learning_rate_warmup_steps": Carried("lr_warmup_steps", number),
    "learning_rate_cycles": Carried("lr_scheduler_num_cycles", whole),
    "clip_grad_norm": Carried("max_grad_norm", number),
    "train_dtype": Carried("mixed_precision", one_of(_PRECISIONS)),
    "output_dtype": Carried("save_precision", one_of({**_PRECISIONS, "float_32": "float"})),
    "model_type": Carried("model_family", one_of(_FAMILIES)),
    "peft_type": Carried("network_type", one_of(_KINDS)),
    "lora_rank": Carried("network_dim", whole),
    "lora_alpha": Carried("network_alpha", number),
    "lora_decompose": Carried("dora_wd", switch),
    "dropout_probability": Carried("network_dropout", number),
    "offset_noise_weight": Carried("noise_offset", number),
    "perturbation_noise_weight": Carried("ip_noise_gamma", number),
    "rescale_noise_scheduler_to_zero_terminal_snr": Carried("zero_terminal_snr", switch),
    "force_v_prediction": Carried("v_parameterization", switch),
    "aspect_ratio_bucketing": Carried("enable_bucket", switch),
    "latent_caching": Carried("cache_latents", switch),
    "gradient_checkpointing": Carried("gradient_checkpointing", one_of(_CHECKPOINTING)),
    "text_encoder_layer_skip": Carried("clip_skip", lambda value: int(str(value)) + 1),
}
_SILENT = {
    "train_batch_size": 1,
    "max_train_epochs": 100,
    "resolution": "512",
    "learning_rate": 3e-6,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 200,
    "network_dim": 16,
    "network_alpha": 1.0,
    "optimizer_type": "AdamW",
}


class OneTrainer(Reader):
    """A preset or saved configuration of OneTrainer."""

    name = "a file of OneTrainer"

    def recognises(self, source: Source) -> bool:
        document = json_of(source)
        return isinstance(document, dict) and "training_method" in document

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        document = json_of(source)
        assert isinstance(document, dict)
        recipe = Recipe()
        method = document.pop("training_method")
        if str(method).upper() != "LORA":
            message = f'"{method}" is not what this program trains; it has LORA.'
            recipe.problems.append(Problem("training_method", message, method))
        _take_optimizer(recipe, document, known)
        _take_loss(recipe, document)
        _take_output(recipe, document)
        carry(recipe, document, _TABLE, _SILENT, known)
        if "learning_rate" in recipe.flat:
            recipe.flat.setdefault("text_encoder_lr", recipe.flat["learning_rate"])
        if not recipe.flat.get("dora_wd"):
            recipe.flat.pop("dora_wd", None)
        elif recipe.flat.get("network_type", "lora") == "lora":
            recipe.flat["network_type"] = "locon"
        return recipe


def _take_optimizer(recipe: Recipe, document: dict[str, object], known: Mapping[str, Setting]) -> None:
    """Take the optimizer with the arguments that all optimizers of that name have."""
    given = document.pop("optimizer", None)
    if not isinstance(given, dict):
        return
    name = given.pop("optimizer", None)
    ours = optimizer(known)(name)
    if ours is None:
        message = f'"{name}" is not an optimizer of this program; choose one of its own.'
        recipe.problems.append(Problem("optimizer.optimizer", message, name))
        return
    recipe.flat["optimizer_type"] = ours
    numbers = [key for key in ("weight_decay", "eps") if isinstance(given.get(key), int | float)]
    arguments = [f"{key}={given.pop(key)}" for key in numbers]
    if all(isinstance(given.get(key), int | float) for key in ("beta1", "beta2")):
        arguments.append(f"betas={given.pop('beta1')},{given.pop('beta2')}")
    becomes: dict[str, object] = {"optimizer_type": ours}
    if arguments:
        becomes["optimizer_args"] = recipe.flat["optimizer_args"] = arguments
    recipe.said.append(Said("optimizer.optimizer", name, becomes))
    document["optimizer"] = given


def _take_loss(recipe: Recipe, document: dict[str, object]) -> None:
    """Take the weights of the loss where they are ours."""
    name = str(document.get("loss_weight_fn", "CONSTANT"))
    becomes: dict[str, object] = {
        "MIN_SNR_GAMMA": {"min_snr_gamma": document.get("loss_weight_strength", 5.0)},
        "DEBIASED_ESTIMATION": {"debiased_estimation_loss": True},
        "CONSTANT": {},
    }.get(name, {"": None})  # type: ignore[assignment]
    if "" in becomes:
        return
    if document.pop("loss_weight_fn", None) is not None and becomes:
        document.pop("loss_weight_strength", None)
        recipe.flat |= becomes
        recipe.said.append(Said("loss_weight_fn", name, becomes))


def _take_output(recipe: Recipe, document: dict[str, object]) -> None:
    """Take the file that the LoRA is written to: its folder, and its name without the ending."""
    given = document.get("output_model_destination")
    if not isinstance(given, str) or not given:
        return
    path = PureWindowsPath(given) if "\\" in given else PurePath(given)
    becomes = {"output_name": path.stem, "output_dir": str(path.parent)}
    recipe.flat |= becomes
    recipe.said.append(Said("output_model_destination", given, becomes))
    del document["output_model_destination"]
