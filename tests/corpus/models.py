"""Model and LoRA files that lie about themselves, and pickles that would like to run something."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

KEY = "lora_unet_mid_block_attentions_0_proj_in"
NAMES = ("model.diffusion_model.input_blocks.0.0.weight", f"{KEY}.lora_down.weight")
"""A tensor of a checkpoint and one of a LoRA, so that a lie is met whatever is looked for first."""


NESTED = b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(90))
"""Opcodes that pair what is on the stack with itself, ninety times over: small in memory, endless to hash."""


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header, JSON or raw bytes, whose length may be lied about."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[object], begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    """Return a header's record of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def of_two(first: Mapping[str, object], second: Mapping[str, object], size: int) -> bytes:
    """Return a file of two tensors with `size` bytes of data."""
    return safetensors(dict(zip(NAMES, (first, second), strict=True)), b"\0" * size)


BYTES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x01\x02\x03\x04\x05\x06\x07",
    "zeros": b"\0" * 4096,
    "a web page": b"<!DOCTYPE html><html><body>Please sign in to download</body></html>",
    "header longer than the file": safetensors({}, length=10_000),
    "header of 2^63 bytes": safetensors({}, length=1 << 63),
    "header is a list": safetensors([]),
    "header is a number": safetensors(b"1"),
    "header is not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "header nests too deep": safetensors(b'{"a":' * 50_000),
    "header has a giant number": safetensors(b'{"a": ' + b"9" * 50_000 + b"}"),
    "metadata is a list": safetensors({"__metadata__": [1]}),
    "metadata holds numbers": safetensors({"__metadata__": {"a": {"b": 1}}}),
    "data cut short": of_two(tensor([2, 2], 0, 16), tensor([2, 2], 16, 32), 31),
    "data too long": of_two(tensor([2, 2], 0, 16), tensor([2, 2], 16, 32), 99),
    "overlapping offsets": of_two(tensor([2, 2], 0, 16), tensor([2, 2], 8, 24), 24),
    "the same bytes twice": of_two(tensor([2, 2], 0, 16), tensor([2, 2], 0, 16), 16),
    "a gap": of_two(tensor([2, 2], 0, 16), tensor([2, 2], 32, 48), 48),
    "offsets backwards": of_two(tensor([2, 2], 16, 0), tensor([2, 2], 16, 32), 32),
    "negative offsets": of_two(tensor([2, 2], -16, 0), tensor([2, 2], 0, 16), 16),
    "offsets are texts": of_two(tensor([2, 2], "0", "16"), tensor([2, 2], 16, 32), 32),
    "one offset": safetensors({NAMES[0]: {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"\0" * 4),
    "shape larger than the data": of_two(tensor([1 << 20, 1 << 20], 0, 16), tensor([2, 2], 16, 32), 32),
    "negative shape": of_two(tensor([-2, -2], 0, 16), tensor([2, 2], 16, 32), 32),
    "shape of fractions": of_two(tensor([2.0, 2.0], 0, 16), tensor([2, 2], 16, 32), 32),
    "shape of truth values": of_two(tensor([True, 4], 0, 16), tensor([2, 2], 16, 32), 32),
    "endless shape": of_two(tensor([2] * 100_000, 0, 16, "X"), tensor([2, 2], 16, 32), 32),
    "giant sides": of_two(tensor([1 << 62] * 8, 0, 16, "X"), tensor([2, 2], 16, 32), 32),
    "dtype is a number": of_two(tensor([2, 2], 0, 16, 5), tensor([2, 2], 16, 32), 32),
    "record is a list": safetensors({NAMES[0]: [1, 2, 3]}),
    "record is empty": safetensors({NAMES[0]: {}}),
    "no dimensions": safetensors({f"{KEY}.lora_down.weight": tensor([], 0, 4)}, b"\0" * 4),
    "rank 0": safetensors(
        {f"{KEY}.lora_down.weight": tensor([0, 4], 0, 0), f"{KEY}.lora_up.weight": tensor([4, 0], 0, 0)}
    ),
    "component_configs is no table": safetensors(
        {"__metadata__": {"component_configs": "[1, 2"}, NAMES[0]: tensor([8, 4, 3, 3], 0, 1152)}, b"\0" * 1152
    ),
    "a zip of nothing": b"PK\x05\x06" + b"\0" * 18,
    "a torn zip": b"PK\x03\x04" + b"\0" * 60,
    "a torn pickle": b"\x80\x02}q\x00(X\x05\x00\x00\x00state",
    "a pickle of a list": pickle.dumps([1, 2], protocol=2) * 4,
    "a memo number of four billion": b"\x80\x02N" + b"r\xff\xff\xff\xff" + b".",
    "a pickle of nothing but None": b"\x80\x02" + b"N" * 1_000_000,
    "a byte array of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a key that takes for ever": b"\x80\x02}N" + NESTED + b"Ns.",
    "a set that takes for ever": b"\x80\x04\x8f(N" + NESTED + b"\x90.",
}  # fmt: skip
"""Name -> a file's bytes, which is neither a checkpoint nor a LoRA, whatever it is called."""


class Runs:
    """Unpickles by making a folder, which stands for whatever a hostile file would do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._folder),)


def write_gigabyte_header(path: Path) -> None:
    """A header of a gigabyte, which is there, as a hole in the file."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 1 << 30) + b'{"a')
        file.truncate((1 << 30) + 100)


def write_hundred_megabytes(path: Path) -> None:
    """A header as long as the format allows."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_000))
        file.truncate(100_000_100)


def write_zip_bomb(path: Path) -> None:
    """A zip whose list of weights grows a thousandfold when it is unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)


def write_zip_of_text(path: Path) -> None:
    """A zip with something else in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("read me.txt", "hello")


def write_running_zip(path: Path) -> None:
    """A checkpoint in today's container whose pickle runs code and has no weights."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {"a": Runs(path.with_suffix(".ran"))}}, 2))


def write_running_pickle(path: Path) -> None:
    """The same in the container before PyTorch 1.6: four pickles one after the other."""
    stream = io.BytesIO()
    for _ in range(4):
        pickle.dump(Runs(path.with_suffix(".ran")), stream, protocol=2)
    path.write_bytes(stream.getvalue())


def write_folder(path: Path) -> None:
    """A folder that calls itself a file."""
    path.mkdir()


def write_loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path)


def write_folder_with_bad_index(path: Path) -> None:
    """A diffusers folder whose index is cut off."""
    path.mkdir()
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipel')


def write_folder_with_listed_index(path: Path) -> None:
    """A diffusers folder whose index is no table."""
    path.mkdir()
    (path / "model_index.json").write_text('["StableDiffusionPipeline"]')


def write_folder_without_parts(path: Path) -> None:
    """A diffusers folder with an index and nothing else."""
    path.mkdir()
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def write_folder_with_bad_config(path: Path) -> None:
    """A diffusers folder whose UNet's configuration is a list of lists."""
    path.mkdir()
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (path / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (path / part / name).write_text("[[1]]")


WRITTEN: dict[str, Callable[[Path], None]] = {
    write.__name__.removeprefix("write_").replace("_", " "): write
    for write in (
        write_gigabyte_header,
        write_hundred_megabytes,
        write_zip_bomb,
        write_zip_of_text,
        write_running_zip,
        write_running_pickle,
        write_folder,
        write_loop,
        write_folder_with_bad_index,
        write_folder_with_listed_index,
        write_folder_without_parts,
        write_folder_with_bad_config,
    )
}
"""Name -> writes what is there under the path given."""
