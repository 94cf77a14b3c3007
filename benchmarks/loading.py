"""Peak memory of loading a checkpoint of Stable Diffusion 1.5's size: `python -m benchmarks.loading [fp32|fp16|bf16]`.

The checkpoint is a sparse file of zeros with every weight of the published model in float32, so it takes no room on
the disk. It is loaded in a process of its own, whose peak is printed beside the file's size.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_LOAD = """
import sys, time, resource, torch
from trainer import families
from trainer.config import load_config
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = load_config(overrides={"pretrained_model_name_or_path": sys.argv[1]})
start = time.perf_counter()
bundle = families.load(config, device=torch.device("cpu"), dtype=getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - start
held = sum(p.nbytes for m in (*bundle.components.values(), bundle.vae) for p in m.parameters())
print(base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, held, seconds)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight of Stable Diffusion 1.5 in the original layout."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from demo.build.single_file import unet_keys, vae_tensors
    from trainer.families import FAMILIES

    configs = FAMILIES["sd15"].configs
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    found = {name: tuple(unet.state_dict()[key].shape) for key, name in unet_keys(unet).items()}
    found |= {name: tuple(value.shape) for name, value in vae_tensors(vae).items()}
    prefix = "cond_stage_model.transformer.text_model."
    return found | {prefix + name: tuple(value.shape) for name, value in text.state_dict().items()}


def write_sparse(path: Path, weights: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of zeros in float32 that takes no room on the disk."""
    header, offset = {}, 0
    for name, shape in weights.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def main(dtype: str = "fp32") -> None:
    """Measure and print one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_sparse(path, shapes())
        size = path.stat().st_size
        start = time.perf_counter()
        from trainer.families import recognise

        recognise(path)
        recognised = time.perf_counter() - start
        answer = subprocess.run(
            [sys.executable, "-c", _LOAD, str(path), DTYPES[dtype]], check=True, capture_output=True, text=True
        )
    base, peak, held, seconds = (float(word) for word in answer.stdout.split())
    gain = (peak - base) * 1024
    sys.stdout.write(
        f"file {size / 1e9:.2f} GB, {dtype}: peak {gain / 1e9:.2f} GB above the imports, of which "
        f"{held / 1e9:.2f} GB are the weights; {seconds:.1f} s; recognised in {recognised * 1000:.0f} ms; "
        f"limit 1.3 x file + weights = {(1.3 * size + held) / 1e9:.2f} GB\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
