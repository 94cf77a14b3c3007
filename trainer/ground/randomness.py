"""Random numbers as a function of (seed, step, slot, purpose), never of what was drawn before.

A resumed run, another number of loader workers or another number of ranks therefore sees the same numbers.
`step` is the optimizer step counted from 0 over the whole run, `slot` the sample's place in the global effective
batch (accumulation and ranks included), `purpose` a word that keeps independent choices apart.
"""

from __future__ import annotations

import hashlib
import random

_BITS = 63
"""torch.Generator.manual_seed takes a signed 64-bit integer; 63 bits keep every seed non-negative."""


def stream(seed: int, step: int, slot: int, purpose: str) -> int:
    """Return the seed, in [0, 2**63), of the generator for one choice about one sample."""
    text = f"{seed}/{step}/{slot}/{purpose}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _BITS)


def python_random(seed: int, step: int, slot: int, purpose: str) -> random.Random:
    """Return a fresh `random.Random` for one choice about one sample."""
    return random.Random(stream(seed, step, slot, purpose))
