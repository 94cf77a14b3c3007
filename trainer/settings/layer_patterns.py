"""What recipes of sd-scripts say of layers by expressions that find their names, as it is said here.

Its module for FLUX.1 looks for an expression anywhere in the name that a layer has in the file, as is done here. That
for Anima fits it to the whole of the layer's path, with dots.
"""

from __future__ import annotations

import ast
import re

RANKS, RATES = "network_reg_dims", "network_reg_lrs"
LISTS = ("include_patterns", "exclude_patterns")
_READ = {
    "networks.lora_flux": (RANKS, RATES),
    "networks.lora_anima": (RANKS, RATES, *LISTS),
}
"""{module for LoRAs: those of them that it reads}."""
_BY_PATH = ("networks.lora_anima",)
_DOT = re.compile(r"\\\.|\[\.\]")
_TELLS_DOTS = re.compile(r"\[\^|\[[^\]]*\.|\\[wW]")
"""What tells dots from letters, and would find more, or less, where there are none."""


def read_by(module: str) -> tuple[str, ...]:
    """Return the names in network_args that a module reads such expressions of."""
    return _READ.get(module, ())


def layer_patterns(module: str, name: str, text: str) -> list[str]:
    """Return what one of network_args says, as a list of our setting of the same name.

    Raises:
        ValueError: it cannot be read, or an expression that fits whole paths cannot be turned.
    """
    if name in LISTS:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError("it must be a list of expressions") from error
        return [_turned(module, each) for each in (found if isinstance(found, list) else [found])]
    parted = [each.strip().partition("=") for each in text.split(",") if each.strip()]
    if not all(sign for _, sign, _ in parted):
        raise ValueError('it must be "expression=number", with commas between')
    return [f"{_turned(module, pattern.strip())}={number.strip()}" for pattern, _, number in parted]


def _turned(module: str, pattern: object) -> str:
    """Return an expression that finds in a layer's name in the file what this one finds in its path."""
    if not isinstance(pattern, str):
        raise ValueError("it must be a list of expressions")
    if module not in _BY_PATH:
        return pattern
    turned = _DOT.sub("_", pattern)
    if _TELLS_DOTS.search(turned):
        raise ValueError(f"{pattern} tells dots from letters, and the names here have no dots")
    return f"^lora_(unet|te)_({turned})$"
