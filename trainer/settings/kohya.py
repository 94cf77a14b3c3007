"""Recipes of sd-scripts: read into our keys, and written back.

A file that has `network_module` is one of sd-scripts': keys that it leaves out take sd-scripts' defaults, so that the
recipe means what it meant there. In any file, keys of sd-scripts that we lack are named; they are problems only where
they would change the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from trainer.ground.errors import Problem
from trainer.settings.layer_patterns import layer_patterns, read_by
from trainer.settings.problems import nearest_key, shown, unknown
from trainer.settings.processes import (
    FLOW_FAMILIES,
    FLOW_THERE,
    OWN_DEFAULTS,
    family_of_arguments,
    family_of_module,
    process_of,
    streamed_share,
    tell_model,
    unsaid_prediction,
    without_choice,
)
from trainer.settings.sd_scripts import NETWORK_ARGUMENTS, Argument, argument, defaults, is_off
from trainer.settings.section import Follows
from trainer.settings.texts import number, parsed
from trainer.settings.walk import Setting

NETWORK_MODULES = {
    "networks.lora": "lora",
    "networks.lora_flux": "lora",
    "networks.lora_anima": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}
"""{sd-scripts' network_module: our network_type}."""

LYCORIS = "lycoris.kohya"
ALGORITHMS = {
    "lora": "locon", "locon": "locon", "loha": "loha", "lokr": "lokr", "ia3": "ia3", "diag-oft": "oft",
}  # fmt: skip
"""{LyCORIS' algo: our network_type}. Written back is the last name of each."""

_HIGHEST_RANK = 4096

_OF_ANOTHER_TRAINER = ("stop_text_encoder_training",)
"""Settings that recipes for LoRAs have as well, where sd-scripts' trainer of LoRAs does not read them."""

_ADAFACTOR_DEFAULTS = {"relative_step": ("True", "False"), "scale_parameter": ("True", "False")}
"""{argument: (sd-scripts' default, ours)}."""


@dataclass(frozen=True, slots=True)
class Said:
    """A key that is said otherwise here: its value there, {key: value} of what it has become, and why if it is odd."""

    key: str
    before: object
    becomes: Mapping[str, object]
    why: str = ""


@dataclass(slots=True)
class Imported:
    """A file's values under our keys, with what could not be taken over.

    `unused` are keys that change nothing, as they stand; `ignored` keys of which nothing is known; `said` keys that
    have another name or value here.
    """

    values: dict[str, object]
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def import_flat(
    flat: Mapping[str, object], known: Mapping[str, Setting], *, ignore_unsupported: bool = False
) -> Imported:
    """Return the values of a flat file under our keys, with what is told of it.

    `ignore_unsupported` makes notices of the problems that keys we lack would be.
    """
    imported = translated(flat, known)
    tell(imported, ignore_unsupported=ignore_unsupported)
    return imported


def translated(flat: Mapping[str, object], known: Mapping[str, Setting]) -> Imported:
    """Return the values of a flat file under our keys; what is not supported is in `unsupported` alone."""
    imported = Imported(dict(flat))
    from_sd_scripts = "network_module" in flat
    if from_sd_scripts:
        _translate(imported, known)
    else:
        _unpack_network_args(imported.values, imported, known)
    _set_unsupported_aside(imported, known, from_sd_scripts=from_sd_scripts)
    return imported


def tell(imported: Imported, *, ignore_unsupported: bool) -> None:
    """Add notices of what is left out; what is not supported is a problem, or a notice too if it is ignored."""
    if imported.unused:
        imported.notices.append(f"Not used by this program, and not needed: {', '.join(imported.unused)}.")
    if imported.ignored:
        imported.notices.append(f"Not known here, and ignored: {', '.join(imported.ignored)}.")
    if ignore_unsupported:
        named = [f"{problem.key} = {shown(problem.value)}" for problem in imported.unsupported]
        imported.notices += [f"Ignored, though it changes the result: {name}." for name in named]
    else:
        way_out = "Remove it, or go on without it by --ignore-unsupported."
        imported.problems += [replace(each, message=f"{each.message} {way_out}") for each in imported.unsupported]


def _translate(imported: Imported, known: Mapping[str, Setting]) -> None:
    """Bring the file's values into our forms, and put sd-scripts' defaults under them."""
    given = {key: value for key, value in imported.values.items() if not _is_unset(known.get(key), value)}
    process = _process_of(given, imported)
    imported.unused += without_choice(given, known)
    for name, share in streamed_share(given).items():
        imported.said.append(Said(name, given.pop(name), {"streamed_weights": share}))
        given.setdefault("streamed_weights", share)
    _rename(given, imported, known)
    _unpack_network(given, imported, known)
    imported.unused += [key for key in _OF_ANOTHER_TRAINER if given.pop(key, None) is not None]
    _translate_optimizer(given, imported, known["optimizer_type"])
    _translate_logging(given)
    ending = given.get("caption_extension")
    if isinstance(ending, str) and ending and not ending.startswith("."):
        given["caption_extension"] = f".{ending}"
        imported.said.append(Said("caption_extension", ending, {"caption_extension": f".{ending}"}))
    for key, value in given.items():
        if key in known:
            given[key] = number(known[key], value)
    for key in [key for key in given if key in known and not known[key].belongs_to(process)]:
        imported.unused.append(key)
        del given[key]
    base = {**defaults(known, process), **OWN_DEFAULTS.get(str(given.get("model_family")), {})}
    if process == FLOW_THERE and (question := unsaid_prediction(given)):
        imported.problems.append(question)
        given |= question.remedy or {}
    if given.get("max_train_epochs"):
        base["max_train_steps"] = None
    for alpha, rank in (("network_alpha", "network_dim"), ("conv_alpha", "conv_dim")):
        if given.get(alpha) == 0:
            given[alpha] = given.get(rank, base.get(rank))
            imported.said.append(Said(alpha, 0, {alpha: given[alpha]}, "0 means the rank there"))
    values = {**base, **given}
    imported.values = {key: values[value.key] if isinstance(value, Follows) else value for key, value in values.items()}


def _process_of(given: dict[str, object], imported: Imported) -> str:
    """Return the kind of process of the model that a recipe is for; say its family where the recipe's module does."""
    module = given.get("network_module", "")
    family = family_of_module(given)
    if family and given.setdefault("model_family", family) == family:
        imported.said.append(Said("network_module", module, {"model_family": family}))
    elif "model_family" not in given and (family := family_of_arguments(given)):
        given["model_family"] = family
        why = "the other arguments are those of the trainer for it"
        imported.said.append(Said("network_module", given["network_module"], {"model_family": family}, why))
    process = process_of(given.get("model_family"))
    vae = given.pop("ae", None) if process == FLOW_THERE else None
    if vae:
        imported.said.append(Said("ae", vae, {"vae": vae}))
        given["vae"] = vae
    return process


def _is_unset(setting: Setting | None, value: object) -> bool:
    """Say whether sd-scripts treats a value as if its key were absent."""
    there = setting.sd_scripts if setting is not None else None
    return value == "" and (there is None or there.default != "")


def _rename(given: dict[str, object], imported: Imported, known: Mapping[str, Setting]) -> None:
    """Bring arguments that are another's former name, or true for one of its values, under that one's key."""
    for setting in known.values():
        there = setting.sd_scripts
        for name in there.once if there and not there.inside else ():
            if name in given:
                imported.said.append(Said(name, given[name], {setting.key: given[name]}))
                given.setdefault(setting.key, given.pop(name))
        for name, value in there.switches.items() if there else ():
            switch = given.pop(name, None)
            if switch is not None and is_off(switch):
                imported.unused.append(name)
            elif switch is not None:
                imported.said.append(Said(name, switch, {setting.key: value}))
                given.setdefault(setting.key, value)
    warmup = given.get("lr_warmup_steps")
    if isinstance(warmup, str) and warmup.endswith("%"):
        share = parsed(warmup[:-1])
        if isinstance(share, int | float):
            given["lr_warmup_steps"] = share / 100
            imported.said.append(Said("lr_warmup_steps", warmup, {"lr_warmup_steps": share / 100}))


def _unpack_network(given: dict[str, object], imported: Imported, known: Mapping[str, Setting]) -> None:
    """Replace network_module and network_args by network_type and the settings that are packed into network_args."""
    module = str(given.pop("network_module", "networks.lora"))
    if module == LYCORIS:
        _unpack_lycoris(given, imported, known)
        _leave_out_others(given, imported, known)
        return
    given["network_type"] = NETWORK_MODULES.get(module, "lora")
    if module in NETWORK_MODULES:
        imported.said.append(Said("network_module", module, {"network_type": given["network_type"]}))
    else:
        having = ", ".join((*NETWORK_MODULES, LYCORIS))
        own = [argument_ for argument_ in _listed(given.get("network_args")) if not _is_packed(argument_, known)]
        with_it = f" Its network_args go with it: {', '.join(map(str, own))}." if own else ""
        message = f"{shown(module)} is not a kind of LoRA that this version trains; it has {having}.{with_it}"
        imported.unsupported.append(Problem("network_module", message, module))
    _unpack_network_args(given, imported, known, module, ours=module in NETWORK_MODULES)


def _leave_out_others(given: dict[str, object], imported: Imported, known: Mapping[str, Setting]) -> None:
    """Take out what LyCORIS accepts and does not use with this kind of adapter."""
    for key, setting in known.items():
        kinds = setting.show.when.get("network_type")
        if key in given and isinstance(kinds, tuple) and given["network_type"] not in kinds:
            del given[key]
            told = [each for each in imported.said if key in each.becomes]
            imported.said = [each for each in imported.said if each not in told]
            imported.unused += [each.key for each in told] or [key]


def _unpack_lycoris(given: dict[str, object], imported: Imported, known: Mapping[str, Setting]) -> None:
    """Replace LyCORIS' module and arguments by our settings; what it leaves out is as LyCORIS has it."""
    algorithm = "lora"
    arguments = given.get("network_args") or ()
    if isinstance(arguments, list | tuple):
        parted = [str(each).partition("=") for each in arguments]
        algorithm = next((text.strip() for name, _, text in parted if name.strip() == "algo"), algorithm)
        given["network_args"] = [each for each in arguments if str(each).partition("=")[0].strip() != "algo"]
    if algorithm not in ALGORITHMS:
        message = f"{shown(algorithm)} is not trained here; of LyCORIS' algorithms there are {', '.join(ALGORITHMS)}."
        imported.unsupported.append(Problem("network_args", message, f"algo={algorithm}"))
    _unpack_network_args(given, imported, known, ours=algorithm in ALGORITHMS)
    given["network_type"] = kind = ALGORITHMS.get(algorithm, "locon")
    if str(given.get("lycoris_preset", "")).endswith(".toml"):
        given["lycoris_preset_file"] = given.pop("lycoris_preset")
    if algorithm in ALGORITHMS:
        imported.said.append(Said("network_module", f"{LYCORIS}, algo={algorithm}", {"network_type": kind}))
    given.setdefault("lycoris_preset", "full")
    if given.get("dora_wd"):
        given.setdefault("wd_on_output", True)
    if kind == "lokr":
        _take_whole_matrices(given, imported)
    given.setdefault("conv_dim", given.get("network_dim", 4))
    if given["conv_dim"]:
        given.setdefault("conv_alpha", given.get("network_alpha", 1))


def _take_whole_matrices(given: dict[str, object], imported: Imported) -> None:
    """Say in a setting what recipes say by a rank that no matrix has, such as 100000."""
    for key in ("network_dim", "conv_dim", "network_alpha", "conv_alpha"):
        value = parsed(str(given.get(key)))
        if isinstance(value, int | float) and value > _HIGHEST_RANK:
            becomes: dict[str, object] = {key: _HIGHEST_RANK}
            if key.endswith("_dim"):
                becomes["full_matrix"] = True
            imported.said = [each for each in imported.said if each.becomes != {key: given[key]}]
            imported.said.append(Said(key, given[key], becomes, "no matrix has such a rank, so they are kept whole"))
            given |= becomes


def _unpack_network_args(
    given: dict[str, object], imported: Imported, known: Mapping[str, Setting], module: str = "", *, ours: bool = True
) -> None:
    """Take out of network_args what is a setting here. The others of a kind that we lack are refused with the kind."""
    arguments = given.pop("network_args", None) or ()
    if not isinstance(arguments, list | tuple):
        message = f'{shown(arguments)} cannot be used: it must be a list of texts, such as ["conv_dim=8"].'
        imported.problems.append(Problem("network_args", message, arguments))
        return
    packed = _packed(known)
    for argument_ in arguments:
        name, _, text = (part.strip() for part in str(argument_).partition("="))
        lacking = NETWORK_ARGUMENTS.get(name)
        if name in packed:
            _take_packed(given, imported, packed[name], name, text)
        elif name in read_by(module):
            _take_patterns(given, imported, module, name, text)
        elif not ours:
            continue
        elif lacking is None:
            imported.ignored.append(f"network_args {name}")
        elif lacking.does_nothing(text):
            imported.unused.append(f"network_args {name}")
        else:
            imported.unsupported.append(_unsupported("network_args", argument_, lacking.instead))


def _take_packed(given: dict[str, object], imported: Imported, setting: Setting, name: str, text: str) -> None:
    """Take one of network_args that is a setting here. Of a switch's several names, one that is on counts."""
    value, there = parsed(text), setting.sd_scripts
    if setting.kind == "switch" and there is not None:
        value = (text.lower() != "false") != (name == there.opposite)
        if not value and (given.get(setting.key) or name in (*there.once, there.opposite)):
            given.setdefault(setting.key, False)
            imported.unused.append(f"network_args {name}")
            return
        off = [each for each in imported.said if value and each.becomes == {setting.key: False}]
        imported.unused += [each.key for each in off]
        imported.said = [each for each in imported.said if each not in off]
    given[setting.key] = value
    imported.said.append(Said(f"network_args {name}", text, {setting.key: value}))


def _take_patterns(given: dict[str, object], imported: Imported, module: str, name: str, text: str) -> None:
    """Take one of network_args that finds layers by their names."""
    try:
        given[name] = layer_patterns(module, name, text)
        imported.said.append(Said(f"network_args {name}", text, {name: given[name]}))
    except ValueError as error:
        imported.unsupported.append(Problem("network_args", f"{name}: {shown(text)} cannot be used: {error}.", text))


def _listed(arguments: object) -> Iterable[object]:
    return arguments if isinstance(arguments, list | tuple) else ()


def _is_packed(argument_: object, known: Mapping[str, Setting]) -> bool:
    """Say whether one of network_args is a setting of its own here."""
    return str(argument_).partition("=")[0].strip() in _packed(known)


def _packed(known: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return {name: setting} of what stands inside network_args."""
    inside = [setting for setting in known.values() if setting.sd_scripts and setting.sd_scripts.inside]
    return {name: setting for setting in inside for name in _names_inside(setting)}


def _names_inside(setting: Setting) -> tuple[str, ...]:
    """Return the names that a setting has inside the argument that it is packed into."""
    there = setting.sd_scripts
    assert there is not None
    return (there.name or setting.key, *there.once, *filter(None, [there.opposite]))


def _translate_optimizer(given: dict[str, object], imported: Imported, optimizer_type: Setting) -> None:
    """Bring the optimizer's name into our spelling, and its defaults to sd-scripts' where they differ from ours."""
    name = given.get("optimizer_type") or "AdamW"
    names = {str(choice).lower(): choice for choice in optimizer_type.choices}
    given["optimizer_type"] = name = names.get(str(name).lower(), name)
    arguments = given.get("optimizer_args") or ()
    if name != "Adafactor" or not isinstance(arguments, list | tuple):
        return
    given["optimizer_args"] = _with_arguments(arguments, {key: pair[0] for key, pair in _ADAFACTOR_DEFAULTS.items()})
    if str(given.get("lr_scheduler")).startswith("adafactor:"):
        why = "Adafactor finds the rate itself"
        imported.said.append(Said("lr_scheduler", given["lr_scheduler"], {"lr_scheduler": "adafactor"}, why))
        given["lr_scheduler"] = "adafactor"


def _with_arguments(arguments: Iterable[object], added: Mapping[str, str]) -> list[object]:
    given = {str(argument).partition("=")[0].strip() for argument in arguments}
    return [*arguments, *(f"{key}={value}" for key, value in added.items() if key not in given)]


def _translate_logging(given: dict[str, object]) -> None:
    """sd-scripts logs for TensorBoard as soon as there is a folder for it; what it sends to wandb is left out."""
    if "log_with" in given or given.get("logging_dir"):
        given["log_with"] = "" if given.get("log_with") == "wandb" else "tensorboard"


def _set_unsupported_aside(imported: Imported, known: Mapping[str, Setting], *, from_sd_scripts: bool) -> None:
    """Take out the keys that we lack: quietly where they change nothing, as problems where they would."""
    lacking = _other_names(known)
    meant = {name for setting in known.values() for name in setting.show.also}
    for key in [key for key in imported.values if key not in known]:
        value = imported.values[key]
        found = None if key in meant and not from_sd_scripts else lacking.get(key) or argument(key)
        if found is not None and found.does_nothing(value):
            imported.unused.append(key)
        elif found is not None:
            imported.unsupported.append(_unsupported(key, value, found.instead))
        elif from_sd_scripts:
            near = nearest_key(key, known)
            imported.ignored.append(f"{key} (did you mean {near}?)" if near else key)
        else:
            imported.problems.append(unknown(key, known))
        del imported.values[key]


def _other_names(known: Mapping[str, Setting]) -> dict[str, Argument]:
    """Return what is known of arguments that are a setting here under another name, or one of its values."""
    found: dict[str, Argument] = {}
    for setting in known.values():
        there = setting.sd_scripts
        for name in there.once if there else ():
            found[name] = Argument(True, instead=f"it is spelled {setting.key} now")
        for name, value in there.switches.items() if there else ():
            found[name] = Argument(True, instead=f"set {setting.key} to {shown(value)}")
    return found


def _unsupported(key: str, value: object, instead: str = "") -> Problem:
    way_out = f"; {instead}" if instead else ""
    return Problem(key, f"{shown(value)} is not supported here and would change the result{way_out}.", value)


def export_flat(
    flat: Mapping[str, object], known: Mapping[str, Setting], prompts_file: str = "", datasets_file: str = ""
) -> dict[str, object]:
    """Return our values as sd-scripts' flat ones, with `network_module` and `network_args` packed.

    sd-scripts reads sample prompts from a file only: prompts that are text are replaced by `prompts_file`, which the
    caller writes, or left out; and datasets by `datasets_file`.
    """
    process = process_of(flat["model_family"])
    exported: dict[str, object] = {}
    packed: dict[str, list[str]] = {}
    for key, setting in known.items():
        there, value = setting.sd_scripts, flat[key]
        if there is None or value in (None, "", []) or not setting.belongs_to(process):
            continue
        if there.inside:
            if value != there.default:
                text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
                packed.setdefault(there.inside, []).append(f"{there.name or key}={text}")
        elif setting.argument:
            exported[setting.argument] = value
        else:
            exported |= {name: True for name, meant in [*there.switches.items()][:1] if meant == value}
    exported |= packed
    if exported.pop("dataset_config", None) and datasets_file:
        exported["dataset_config"] = datasets_file
    _adapt(exported, flat, prompts_file)
    return dict(sorted(exported.items()))


def _adapt(exported: dict[str, object], flat: Mapping[str, object], prompts_file: str) -> None:
    """Say otherwise what sd-scripts would refuse or take for something else."""
    _pack_lycoris(exported, flat)
    if flat["mixed_precision"] == "auto":
        exported["mixed_precision"] = "fp16"
    if flat["max_token_length"] == 75:  # sd-scripts calls this length None
        del exported["max_token_length"]
    if flat["lr_scheduler"] == "constant" or flat["lr_scheduler_type"]:
        exported["lr_warmup_steps"] = 0  # sd-scripts refuses a warm-up there; we don't use it
    if flat["optimizer_type"] == "Adafactor":
        ours = {key: pair[1] for key, pair in _ADAFACTOR_DEFAULTS.items()}
        exported["optimizer_args"] = _with_arguments(list(exported.get("optimizer_args", ())), ours)  # type: ignore[call-overload]
    if not names_a_file(str(flat["sample_prompts"])):
        exported.pop("sample_prompts", None)
        if flat["sample_prompts"] and prompts_file:
            exported["sample_prompts"] = prompts_file
    tell_model(str(flat["model_family"]), exported)
    exported["save_model_as"] = "safetensors"


def _pack_lycoris(exported: dict[str, object], flat: Mapping[str, object]) -> None:
    """Write the module, and for LyCORIS' kinds the arguments that it would otherwise take otherwise."""
    kind, arguments = str(flat["network_type"]), exported.pop("network_args", [])
    assert isinstance(arguments, list)
    if not flat["dora_wd"]:
        arguments = [each for each in arguments if not each.startswith("wd_on_output=")]
    own = FLOW_FAMILIES.get(str(flat["model_family"]), "networks.lora")
    exported["network_module"] = own if kind == "lora" else LYCORIS
    if arguments:
        exported["network_args"] = arguments
    if kind == "lora":
        return
    algorithms = {ours: theirs for theirs, ours in ALGORITHMS.items()}
    extra = [f"algo={algorithms[kind]}"]
    if flat["lycoris_preset_file"]:
        arguments = [each for each in arguments if not each.startswith("preset=")]
        extra.append(f"preset={flat['lycoris_preset_file']}")
    elif not flat["lycoris_preset"]:
        extra.append("preset=attn-mlp" if flat["conv_dim"] is None else "preset=full")
    if flat["conv_dim"] is None:
        extra.append("conv_dim=0")
    elif flat["conv_alpha"] is None:
        extra.append("conv_alpha=1")
    exported["network_args"] = [*extra, *arguments]


_PATH = re.compile(
    r"""["']?(.*\.(txt|toml|json)|\S+\.(ya?ml|csv|tsv|md|text|docx?)|(~|\.{1,2}|[a-z]:)?[/\\].*)["']?""", re.IGNORECASE
)


def names_a_file(prompts: str) -> bool:
    """Say whether sample prompts are the path of a file, not prompts themselves: one line that looks like one."""
    text = prompts.strip()
    return "\n" not in text and bool(_PATH.fullmatch(text))
