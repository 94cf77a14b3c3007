"""A LoRA merged into a checkpoint of SDXL's size: peak memory and time, and sd-scripts' where there is a checkout.

The checkpoint has every weight of the published model in half precision, 6.9 GB, with random numbers. sd-scripts
computes in half precision too here, where it needs the least time and memory; ours always adds in single precision.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import peak
from benchmarks.ground import PROJECT
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row, ratio_row
from demo.build.single_file import UNET_PREFIX, vae_tensors
from trainer.families import FAMILIES
from trainer.families.unet.weight_names import open_clip_name, unet_name
from trainer.ground.safetensors_header import Entry
from trainer.tools.tensor_files import head

PAIRS = 3
RANK = 16
_NUMBERS = 1 << 24
_CLIP, _OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."

_PEAK = Path(peak.__file__).read_text(encoding="utf-8")
_CHILD = """
import os.path, runpy, sys
kind, name, *sys.argv[1:] = sys.argv[1:]
try:
    if kind == "module":
        runpy.run_module(name, run_name="__main__")
    else:
        sys.path.insert(0, os.path.dirname(name))
        runpy.run_path(name, run_name="__main__")
except SystemExit as end:
    code = end.code or 0
else:
    code = 0
print("PEAK", peak_memory())
sys.exit(code)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight of SDXL in the original layout."""
    configs = FAMILIES["sdxl"].configs
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        clip = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
        big = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
    found = {UNET_PREFIX + unet_name(key, unet.config): tuple(each.shape) for key, each in unet.state_dict().items()}
    found |= {name: tuple(value.shape) for name, value in vae_tensors(vae).items()}
    found |= {_CLIP + key.removeprefix("text_model."): tuple(each.shape) for key, each in clip.state_dict().items()}
    for key, each in big.state_dict().items():
        name, third = open_clip_name(key)
        first, *others = each.shape
        found[_OPEN_CLIP + name] = (first if third is None else 3 * first, *others)
    return found


def write_checkpoint(path: Path, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Write a checkpoint in half precision whose numbers are a random row again and again."""
    numbers = (torch.randn(_NUMBERS, generator=torch.Generator().manual_seed(0)) * 0.02).half().numpy().tobytes()
    entries, begin = {}, 0
    for name, shape in weights.items():
        end = begin + 2 * math.prod(shape)
        entries[name] = Entry("F16", shape, begin, end)
        begin = end
    with path.open("wb") as file:
        file.write(head({}, entries))
        for place in range(0, begin, len(numbers)):
            file.write(numbers[: begin - place])


def write_lora(path: Path) -> None:
    """Write a LoRA on every layer that sd-scripts adapts."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for each in FAMILIES["sdxl"].targets(FAMILIES["sdxl"].configs, conv=False):
        tensors[f"{each.name}.lora_down.weight"] = torch.randn(RANK, each.in_features, generator=generator) * 0.02
        tensors[f"{each.name}.lora_up.weight"] = torch.randn(each.out_features, RANK, generator=generator) * 0.02
        tensors[f"{each.name}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows of merging."""
    model, lora, out = (options.folder / f"{name}.safetensors" for name in ("sdxl-size", "sdxl-lora", "sdxl-merged"))
    if not model.is_file():
        write_checkpoint(model, shapes())
    write_lora(lora)
    words = ["--sd_model", str(model), "--models", str(lora), "--ratios", "0.8", "--save_to", str(out)]
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(1 if options.quick else PAIRS):
        ours.append(_run([sys.executable], ["module", "trainer", "merge", *words], PROJECT, out))
        if options.sd_scripts and options.sd_python:
            script = str(options.sd_scripts / "networks" / "sdxl_merge_lora.py")
            more = ["--precision", "fp16", "--save_precision", "fp16"]
            theirs.append(_run([str(options.sd_python)], ["path", script, *words, *more], options.sd_scripts, out))
    yield median_row("merge/sdxl, time", [seconds for seconds, _ in ours], "s")
    yield median_row("merge/sdxl, peak memory", [peak / 2**30 for _, peak in ours], "GiB")
    if theirs:
        yield median_row("merge/sdxl, time of sd-scripts", [seconds for seconds, _ in theirs], "s")
        yield median_row("merge/sdxl, peak memory of sd-scripts", [peak / 2**30 for _, peak in theirs], "GiB")
        times, peaks = ([each[place] for each in (*ours, *theirs)] for place in (0, 1))
        count = len(ours)
        yield ratio_row("merge/sdxl, time over sd-scripts", times[:count], times[count:], Target(0.7))
        yield ratio_row("merge/sdxl, peak memory over sd-scripts", peaks[:count], peaks[count:], Target(0.5))


def _run(python: Sequence[str], words: Sequence[str], folder: Path, out: Path) -> tuple[float, float]:
    """Run a program on its own, and return the seconds that it took and its peak memory in bytes."""
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    answer = subprocess.run(
        [*python, "-c", _PEAK + _CHILD, *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - began
    told = next(line for line in answer.stdout.splitlines() if line.startswith("PEAK"))
    out.unlink()
    return seconds, float(told.split()[1])
