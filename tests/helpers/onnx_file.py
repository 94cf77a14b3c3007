"""A tiny tagger as an ONNX file, written by hand as the format is described (onnx.proto), and its list of tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray

SIDE = 448
POOL = 112

TAGS = (
    ("general", 9), ("explicit", 9),
    ("1girl", 0), ("red_hair", 0), ("^_^", 0), ("blue_sky", 0),
    ("some_character", 4), ("other_(series)", 4),
)  # fmt: skip
"""(name, category)."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _integers(name: str, values: Sequence[int]) -> bytes:
    return _part(5, _part(1, name) + b"".join(_number(8, value) for value in values) + _number(20, 7))


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_part(1, name) for name in inputs)
    return _part(1, names + _part(2, output) + _part(3, output) + _part(4, kind) + attributes)


def _tensor(name: str, values: NDArray[numpy.float32]) -> bytes:
    dims = b"".join(_number(1, side) for side in values.shape)
    return _part(5, dims + _number(2, 1) + _part(8, name) + _part(9, values.astype("<f4").tobytes()))


def _value(field: int, name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_part(1, _part(2, each) if isinstance(each, str) else _number(1, each)) for each in shape)
    return _part(field, _part(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, dims))))


def weights(seed: int = 0, tags: int = len(TAGS)) -> NDArray[numpy.float32]:
    """Return the network's numbers: float32 [3 * 4 * 4, tags]."""
    values = numpy.random.default_rng(seed).normal(0, 0.004, (3 * (SIDE // POOL) ** 2, tags))
    return values.astype(numpy.float32)


def expected(picture: NDArray[numpy.float32], seed: int = 0) -> NDArray[numpy.float32]:
    """Return what the network says of a prepared picture [side, side, 3]: means of 112 x 112 parts, linear, sigmoid."""
    parts = SIDE // POOL
    means = picture.transpose(2, 0, 1).reshape(3, parts, POOL, parts, POOL).mean(axis=(2, 4), dtype=numpy.float64)
    return (1 / (1 + numpy.exp(-(means.reshape(-1) @ weights(seed))))).astype(numpy.float32)


def write_tagger(folder: Path, batch: int | str = "N") -> Path:
    """Write model.onnx and selected_tags.csv of a network as `expected` computes it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = b"".join(
        [
            _node("Transpose", ["input"], "planes", _integers("perm", (0, 3, 1, 2))),
            _node(
                "AveragePool",
                ["planes"],
                "means",
                _integers("kernel_shape", (POOL, POOL)) + _integers("strides", (POOL, POOL)),
            ),
            _node("Flatten", ["means"], "flat"),
            _node("MatMul", ["flat", "weights"], "sums"),
            _node("Sigmoid", ["sums"], "output"),
            _part(2, "tagger"),
            _tensor("weights", weights()),
            _value(11, "input", (batch, SIDE, SIDE, 3)),
            _value(12, "output", (batch, len(TAGS))),
        ]
    )
    model = _number(1, 8) + _part(8, _part(1, "") + _number(2, 13)) + _part(7, graph)
    (folder / "model.onnx").write_bytes(model)
    rows = "".join(f"{number},{name},{category},100\n" for number, (name, category) in enumerate(TAGS))
    (folder / "selected_tags.csv").write_text(f"tag_id,name,category,count\n{rows}")
    return folder
