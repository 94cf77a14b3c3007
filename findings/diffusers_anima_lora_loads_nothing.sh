#!/usr/bin/env bash
# diffusers' loader of LoRAs for Anima (AnimaLoraLoaderMixin, which AnimaModularPipeline has) takes a file with the names
# that sd-scripts' networks.lora_anima writes (lora_unet_blocks_0_self_attn_q_proj.lora_down.weight ...) and loads nothing
# of it: no error, no warning, and the pictures are those of the base model. For Stable Diffusion and FLUX.1 diffusers
# converts such names, so the good guess is that it does here. The check of the names asks whether each holds the word
# "lora", which the prefix lora_unet_ does by itself; then only keys that begin with "transformer." or
# "text_conditioner." are looked at, and keys that are neither are passed over. Only the prefix "diffusion_model." leads
# to a conversion. The same matrices behind that prefix are refused where the file has .alpha keys, as ComfyUI's have,
# and are loaded whole without them; without alpha they act at scale 1, so alpha / rank has to be multiplied into one of
# the two matrices beforehand.
# Seen with diffusers 0.42.1, peft 0.21.2 and torch 2.13.0 on Linux, Python 3.11; expected output at the end of this file.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers>=5,<6" "accelerate" >"$folder/install.log" 2>&1 \
    || { tail -n 5 "$folder/install.log"; exit 2; }

"$folder/venv/bin/python" - <<'PYTHON' >"$folder/seen" 2>"$folder/errors" || { tail -n 5 "$folder/errors"; exit 2; }
import warnings

import torch
from diffusers import CosmosTransformer3DModel, DiffusionPipeline
from diffusers.loaders.lora_pipeline import AnimaLoraLoaderMixin

LAYERS = {
    "self_attn.q_proj": ("attn1.to_q", 32, 32),
    "self_attn.output_proj": ("attn1.to_out.0", 32, 32),
    "cross_attn.k_proj": ("attn2.to_k", 12, 32),
    "mlp.layer1": ("ff.net.0.proj", 32, 128),
}
RANK, ALPHA = 4, 2.0


class Pipeline(DiffusionPipeline, AnimaLoraLoaderMixin):
    """A pipeline with the one model that the LoRA is for."""

    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)


def made():
    """A transformer of Anima's kind, with two small blocks."""
    return CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=4.0,
        text_embed_dim=12, adaln_lora_dim=4, extra_pos_embed_type=None,
    )


def lora(style):
    """The same matrices for four layers of two blocks, named in one of three ways."""
    tensors, random = {}, torch.Generator().manual_seed(1)
    for block in range(2):
        for layer, (_, inputs, outputs) in LAYERS.items():
            down, up = torch.randn(RANK, inputs, generator=random), torch.randn(outputs, RANK, generator=random)
            if style == "kohya":
                name = "lora_unet_blocks_%d_%s" % (block, layer.replace(".", "_"))
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            else:
                name = f"diffusion_model.blocks.{block}.{layer}"
                tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            if style != "comfyui without alpha":
                tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


for style in ("kohya", "comfyui", "comfyui without alpha"):
    pipeline, tensors = Pipeline(made()), lora(style)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            pipeline.load_lora_weights(dict(tensors), adapter_name="own")
        except ValueError:
            print(f"{style}: {len(tensors)} tensors given, refused with a ValueError")
            continue
    loaded = [name for name, _ in pipeline.transformer.named_modules() if name.endswith(".lora_A.own")]
    said = [each for each in heard if "lora" in str(each.message).lower()]
    print(f"{style}: {len(tensors)} tensors given, {len(loaded)} of 8 layers loaded, {len(said)} warnings")
PYTHON

cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "The behaviour has changed."; exit 1; }
kohya: 24 tensors given, 0 of 8 layers loaded, 0 warnings
comfyui: 24 tensors given, refused with a ValueError
comfyui without alpha: 16 tensors given, 8 of 8 layers loaded, 0 warnings
EXPECTED
grep -i "lora" "$folder/errors" && { echo "The behaviour has changed: it says something."; exit 1; }
echo "As described: a LoRA with kohya's names for Anima is taken without a word, and nothing of it acts."
