"""Say which keys the LoRA file of some settings has."""

from __future__ import annotations

import json

from trainer.adapters import keys, make_spec
from trainer.config import rates
from trainer.families import FAMILIES
from trainer.settings.section import Show, argument
from trainer.tools.of_settings import OfSettings, SettingsArguments, read_settings
from trainer.tools.tool import COMPLETED, Desk

AUTO = "auto"


class KeysArguments(SettingsArguments):
    """Of which LoRA."""

    family: str = argument(AUTO, Show("Family"), choices=(AUTO, *FAMILIES))
    """The kind of model that the LoRA is for; auto is what --set says of model_family, else sd15."""


class Keys(OfSettings[KeysArguments]):
    """Prints `{"keys": {name: shape}, "bytes": n}`."""

    name = "keys"
    help = "print the keys and shapes that a LoRA file of these settings has"
    arguments = KeysArguments

    def run(self, arguments: KeysArguments, desk: Desk) -> int:
        config = read_settings(arguments, desk, None)
        said = config.model.model_family if arguments.family == AUTO else arguments.family
        family = FAMILIES.get(said) or next(iter(FAMILIES.values()))
        targets = family.targets(family.configs, conv=True)
        spec = make_spec(config.network, rates(config, family.parts), *config.of_adapters)
        desk.say(json.dumps(keys(targets, spec, config.saving.save_precision)))
        return COMPLETED
