"""ai-toolkit's YAML. What means the same here is taken over."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from trainer.ground.errors import ConfigError, Problem
from trainer.settings.importing.ai_toolkit_pictures import take_datasets, take_samples
from trainer.settings.importing.others import (
    Carried,
    carry,
    number,
    one_of,
    optimizer,
    reverse,
    switch,
    text,
    whole,
)
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting

_PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "float"), "no"),
}
_SAVED = {name: "float" if ours == "no" else ours for name, ours in _PRECISIONS.items()}
_SCHEDULES = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial")
_JOB = re.compile(r"^job:\s*['\"]?(?:extension|train)\b", re.MULTILINE)
_OTHER_MODELS = re.compile(r"is_(?!v2$|xl$|v_pred$|flux$)\w+$")
_QUANTISED = {
    **dict.fromkeys(("qfloat8", "float8"), "fp8"),
    **dict.fromkeys(("qint8", "int8"), "int8"),
    **dict.fromkeys(("qint4", "uint4"), "nf4"),
}
"""{what it calls a quantised base: ours of as many bits}."""

_ARCHITECTURES = {"sd1": "sd15", "sd2": "sd2", "sdxl": "sdxl", "flux": "flux", "chroma": "chroma"}
"""{what it calls a kind of model: the family here}."""

_TABLE = {
    "name": Carried("output_name", text),
    "training_folder": Carried("output_dir", text),
    "network.linear": Carried("network_dim", whole),
    "network.rank": Carried("network_dim", whole),
    "network.linear_alpha": Carried("network_alpha", number),
    "network.alpha": Carried("network_alpha", number),
    "network.conv": Carried("conv_dim", whole),
    "network.conv_alpha": Carried("conv_alpha", number),
    "network.dropout": Carried("network_dropout", number),
    "network.type": Carried(
        "network_type", one_of({"lora": "lora", "locon": "locon", "lokr": "lokr", "dora": "locon"})
    ),
    "network.lokr_factor": Carried("factor", whole),
    "network.lokr_full_rank": Carried("full_matrix", switch),
    "train.steps": Carried("max_train_steps", whole),
    "train.batch_size": Carried("train_batch_size", whole),
    "train.gradient_accumulation_steps": Carried("gradient_accumulation_steps", whole),
    "train.gradient_accumulation": Carried("gradient_accumulation_steps", whole),
    "train.gradient_checkpointing": Carried("gradient_checkpointing", switch),
    "train.lr": Carried("learning_rate", number),
    "train.unet_lr": Carried("unet_lr", number),
    "train.text_encoder_lr": Carried("text_encoder_lr", number),
    "train.train_text_encoder": Carried("network_train_unet_only", reverse),
    "train.train_unet": Carried("network_train_text_encoder_only", reverse),
    "train.lr_scheduler": Carried("lr_scheduler", one_of({name: name for name in _SCHEDULES})),
    "train.max_grad_norm": Carried("max_grad_norm", number),
    "train.noise_offset": Carried("noise_offset", number),
    "train.min_snr_gamma": Carried("min_snr_gamma", number),
    "train.dtype": Carried("mixed_precision", one_of(_PRECISIONS)),
    "save.dtype": Carried("save_precision", one_of(_SAVED)),
    "save.save_every": Carried("save_every_n_steps", whole),
    "model.name_or_path": Carried("pretrained_model_name_or_path", text),
    "model.is_v_pred": Carried("v_parameterization", switch),
    "sample.sample_every": Carried("sample_every_n_steps", whole),
    "train.ema_config.use_ema": Carried("use_ema", switch),
    "train.ema_config.ema_decay": Carried("ema_decay", number),
}
_SILENT = {
    "network_dim": 4,
    "network_alpha": 1.0,
    "learning_rate": 1e-6,
    "max_train_steps": 1000,
    "train_batch_size": 1,
    "optimizer_type": "AdamW",
    "lr_scheduler": "constant",
    "network_train_unet_only": True,
    "gradient_checkpointing": True,
}


class AiToolkit(Reader):
    """A job of ai-toolkit that trains a LoRA."""

    name = "a file of ai-toolkit"

    def recognises(self, source: Source) -> bool:
        return source.metadata is None and bool(_JOB.search(source.text))

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        process = _process_of(source)
        recipe = Recipe()
        kind = process.pop("type", "sd_trainer")
        if kind not in ("sd_trainer", "diffusion_trainer", "ui_trainer"):
            recipe.problems.append(Problem("type", f'"{kind}" is not what this program trains; it has LoRAs.', kind))
        _take_model(recipe, process)
        _take_optimizer(recipe, process, known)
        take_datasets(recipe, process)
        take_samples(recipe, process)
        _take_kept(recipe, process)
        carry(recipe, process, _TABLE, _SILENT, known)
        if "learning_rate" in recipe.flat:
            recipe.flat.setdefault("text_encoder_lr", recipe.flat["learning_rate"])
        return recipe


def _process_of(source: Source) -> dict[str, object]:
    """Return the tables of the first process of a job, with the job's name. Raises ConfigError where there is none."""
    try:
        document = yaml.safe_load(source.text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" (line {place.line + 1}, column {place.column + 1})" if place else ""
        raise ConfigError([Problem(str(source.path), f"this is not valid YAML{where}.")]) from None
    config = document.get("config") if isinstance(document, dict) else None
    processes = config.get("process") if isinstance(config, dict) else None
    process = processes[0] if isinstance(processes, list) and processes else None
    if not isinstance(process, dict):
        raise ConfigError([Problem(str(source.path), "the job has no process that could be read.")])
    assert isinstance(config, dict)
    named = {"name": config["name"]} if isinstance(config.get("name"), str) else {}
    return {**named, **{str(key): value for key, value in process.items()}}


def _table(process: dict[str, object], name: str) -> dict[str, object]:
    """Return a table of a process, with its keys as texts, in its place."""
    found = process.get(name)
    process[name] = table = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    return table


def _take_model(recipe: Recipe, process: dict[str, object]) -> None:
    """Take the family of the model, and name one that is not trained here."""
    model = _table(process, "model")
    named = [key for key, value in model.items() if _OTHER_MODELS.match(key) and value is True]
    named += [f"arch {arch}" for arch in [str(model.get("arch") or "")] if arch and arch not in _ARCHITECTURES]
    for name in named:
        recipe.problems.append(Problem(name, "it is another kind of model; choose one of this program's families."))
    family = "flux" if model.pop("is_flux", False) else _ARCHITECTURES.get(str(model.get("arch")), "")
    family = "sdxl" if model.pop("is_xl", False) else "sd2" if model.pop("is_v2", False) else family
    if family:
        recipe.flat["model_family"] = family
        recipe.said.append(Said("model", "", {"model_family": family}))
    kind = str(model.get("qtype", "qfloat8")) if model.get("quantize") is True else ""
    if kind in _QUANTISED:
        del model["quantize"]
        model.pop("qtype", None)
        recipe.flat["quantize_base"] = _QUANTISED[kind]
        recipe.said.append(Said("model.quantize", kind, {"quantize_base": _QUANTISED[kind]}))


def _take_kept(recipe: Recipe, process: dict[str, object]) -> None:
    """Take how many saved files are kept; here it is said in steps, of which the oldest kept file is that many away."""
    save = _table(process, "save")
    count, every = save.get("max_step_saves_to_keep"), save.get("save_every")
    if isinstance(count, int) and isinstance(every, int) and min(count, every) >= 1:
        save.pop("max_step_saves_to_keep")
        recipe.flat["save_last_n_steps"] = steps = (count - 1) * every
        recipe.said.append(Said("save.max_step_saves_to_keep", count, {"save_last_n_steps": steps}))


def _take_optimizer(recipe: Recipe, process: dict[str, object], known: Mapping[str, Setting]) -> None:
    train = _table(process, "train")
    name = train.pop("optimizer", None)
    given = train.pop("optimizer_params", None)
    if name is None:
        return
    ours = optimizer(known)(name)
    if ours is None:
        message = f'"{name}" is not an optimizer of this program; choose one of its own.'
        recipe.problems.append(Problem("train.optimizer", message, name))
        return
    becomes: dict[str, object] = {"optimizer_type": ours}
    if isinstance(given, dict) and given:
        becomes["optimizer_args"] = [f"{key}={_argument(value)}" for key, value in given.items()]
    recipe.flat |= becomes
    recipe.said.append(Said("train.optimizer", name, becomes))


def _argument(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
