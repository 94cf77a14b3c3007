"""Say which keys the LoRA file of some settings has."""

from __future__ import annotations

import json

from trainer.adapters import keys, make_spec
from trainer.config import rates
from trainer.families import FAMILIES
from trainer.settings.section import Show, argument
from trainer.tools.of_settings import OfSettings, SettingsArguments, read_settings
from trainer.tools.tool import COMPLETED, Desk


class KeysArguments(SettingsArguments):
    """Of which LoRA."""

    family: str = argument(next(iter(FAMILIES)), Show("Family"), choices=tuple(FAMILIES))
    """The kind of model that the LoRA is for."""


class Keys(OfSettings[KeysArguments]):
    """Prints `{"keys": {name: shape}, "bytes": n}`."""

    name = "keys"
    help = "print the keys and shapes of a LoRA file"
    arguments = KeysArguments

    def run(self, arguments: KeysArguments, desk: Desk) -> int:
        config = read_settings(arguments, desk, None)
        family = FAMILIES[arguments.family]
        targets = family.targets(family.configs, conv=True)
        spec = make_spec(config.network, rates(config, family.parts), *config.of_adapters)
        desk.say(json.dumps(keys(targets, spec, config.saving.save_precision)))
        return COMPLETED
