"""How a number of channels is taken apart into two factors, as LyCORIS does for LoKr and OFT."""

from __future__ import annotations


def factorization(size: int, factor: int) -> tuple[int, int]:
    """Return two numbers whose product is `size`, the smaller one first.

    `factor` is one of them where it divides `size`. Else the pair is the squarest one of which the smaller number is
    not above `factor`; -1 sets no limit. (lycoris-lora 4.1.3, `functional.general.factorization`.)
    """
    if factor > 0 and size % factor == 0:
        small, large = sorted((factor, size // factor))
        return small, large
    limit = size if factor < 0 else factor
    small, large = 1, size
    for candidate in range(2, size + 1):
        if candidate > limit or candidate > size // candidate:
            break
        if size % candidate == 0:
            small, large = candidate, size // candidate
    return small, large
