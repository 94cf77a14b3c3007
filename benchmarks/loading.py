"""Peak memory of loading a checkpoint of Stable Diffusion 1.5's size, in each precision.

The checkpoint is a sparse file of zeros with every weight of the published model in float32, so it takes no room on
the disk. It is loaded in a process of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import ground
from benchmarks.ground import PROJECT
from benchmarks.options import Options
from benchmarks.rows import Row, Target
from demo.build.single_file import unet_keys, vae_tensors
from trainer.families import FAMILIES, recognise

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_AT_ONCE = 1 << 24
_SLACK = 1.3
"""Times the file's size, beside the weights, that loading may take."""
_LOAD = """
import sys, time, torch
from benchmarks.peak import peak_memory
from trainer import families
from trainer.config import load_config
base = peak_memory()
config = load_config(overrides={"pretrained_model_name_or_path": sys.argv[1]})
start = time.perf_counter()
bundle = families.load(config, device=torch.device("cpu"), dtype=getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - start
held = sum(p.nbytes for m in (*bundle.components.values(), bundle.vae) for p in m.parameters())
print(base, peak_memory(), held, seconds)
"""


_RUN = """
import json, os, sys, time
began = time.time()
from trainer.faststart import libraries
libraries.load()
from benchmarks.peak import peak_memory
from trainer.config import load_config
from trainer.ground.events import StepDone
from trainer.run import train
from trainer.training import build
load, loaded = build.load_models, []
def watched(*given):
    found = load(*given)
    loaded.append(peak_memory())
    return found
build.load_models = watched
def emit(event):
    if isinstance(event, StepDone):
        print(loaded[0], peak_memory(), event.time - event.seconds - began, flush=True)
        os._exit(0)
train(load_config(overrides=json.loads(sys.argv[1])), emit=emit)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight of Stable Diffusion 1.5 in the original layout."""
    configs = FAMILIES["sd15"].configs
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    found = {name: tuple(unet.state_dict()[key].shape) for key, name in unet_keys(unet).items()}
    found |= {name: tuple(value.shape) for name, value in vae_tensors(vae).items()}
    prefix = "cond_stage_model.transformer.text_model."
    return found | {prefix + name: tuple(value.shape) for name, value in text.state_dict().items()}


def write_sparse(path: Path, weights: Mapping[str, tuple[int, ...]], dtype: str = "F32", size: int = 4) -> None:
    """Write a safetensors file of zeros that takes no room on the disk; a number of `dtype` has `size` bytes."""
    header, offset = {}, 0
    for name, shape in weights.items():
        end = offset + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def write_sdxl(path: Path) -> Path:
    """Write SDXL's single file in half precision, of zeros that take no room on the disk, and return its path."""
    family, found = FAMILIES["sdxl"], dict[str, tuple[int, ...]]()
    for component in family.weighty:
        layouts = list(family.layouts(component, family.configs, "file"))
        # The second text encoder has OpenCLIP's names, the third layout behind the prefix.
        found.update(layouts[2 if component == "text_encoder_2" else 0])
    write_sparse(path, found, "F16", 2)
    return path


def _read_through(path: Path) -> Path:
    """Have the system hold a file's bytes in memory, as those of one that was copied or used before."""
    room = bytearray(_AT_ONCE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(room):
            pass
    return path


def measure_sdxl(options: Options) -> Iterator[Row]:
    """Yield the rows of a run of SDXL's single file in bf16 on the UNet, 256 px, up to its first step."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ground.settings(
            _read_through(write_sdxl(Path(folder) / "sdxl.safetensors")),
            ground.pictures(Path(folder) / "pictures", 1, (256, 256)),
            Path(folder) / "out",
            mixed_precision="bf16",
            network_train_unet_only=True,
            max_train_steps=1,
        )
        given = json.dumps({key: value for key, value in settings.items() if value is not None})
        command = [sys.executable, "-c", _RUN, given]
        answer = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
        loading, peak, seconds = (float(word) for word in answer.stdout.split()[-3:])
        yield Row("loading/sdxl, bf16, peak of the process", loading / 1e9, "GB", target=Target(7.5))
        yield Row("loading/sdxl, bf16, peak after a step", peak / 1e9, "GB")
        yield Row("loading/sdxl, bf16, command to first step", seconds, "s", target=Target(12.0))


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows of loading."""
    if not options.quick:
        yield from measure_sdxl(options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_sparse(path, shapes())
        size = path.stat().st_size
        began = time.perf_counter()
        recognise(path)
        yield Row("loading/recognise", 1000 * (time.perf_counter() - began), "ms")
        for name in ["fp16"] if options.quick else DTYPES:
            command = [sys.executable, "-c", _LOAD, str(path), DTYPES[name]]
            answer = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
            base, peak, held, seconds = (float(word) for word in answer.stdout.split())
            gain = peak - base
            limit = Target(round((_SLACK * size + held) / 2**30, 2))
            yield Row(f"loading/{name}, peak above the imports", gain / 2**30, "GiB", target=limit)
            yield Row(f"loading/{name}, time", seconds, "s")
