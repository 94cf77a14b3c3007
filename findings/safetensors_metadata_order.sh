#!/usr/bin/env bash
# safetensors writes the texts of a file's metadata in another order at each save, also within one process: the same
# tensors and the same texts give files of equal length and other bytes. So the sha256 of a LoRA file, whose metadata
# has dozens of texts, tells nothing about whether two trainings came out equal, a fixed seed notwithstanding, and a
# checkpoint saved again is another file to whatever compares bytes. The good guess is that a format without time
# stamps, given equal content, gives equal files. With a single text, or none, it does.
# Seen with safetensors 0.8.0 and numpy 2.4.0 on Linux, Python 3.11: 50 saves of four texts, more than one digest; one
# digest once the header is sorted.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    "safetensors==0.8.0" "numpy==2.4.0" >"$folder/install.log" 2>&1 || { tail -n 5 "$folder/install.log"; exit 2; }

"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
import json
import sys

import numpy
import safetensors
from safetensors.numpy import save

tensors = {"lora_unet_mid.lora_down.weight": numpy.zeros((4, 8), numpy.float32)}


def digests(texts, prepare):
    return {hashlib.sha256(prepare(save(tensors, texts))).hexdigest() for _ in range(50)}


def sorted_header(content):
    length = int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode() + content[8 + length :]


texts = {"ss_seed": "42", "ss_epoch": "1", "ss_steps": "100", "ss_network_dim": "8"}
lengths = {len(save(tensors, texts)) for _ in range(50)}
as_written, ordered = digests(texts, bytes), digests(texts, sorted_header)
single = digests({"format": "pt"}, bytes)
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}: 50 saves of equal content")
print(f"four texts: {len(lengths)} length, {'several digests' if len(as_written) > 1 else 'one digest'}")
print(f"four texts, header sorted: {len(ordered)} digest")
print(f"one text: {len(single)} digest")
if not (len(lengths) == len(ordered) == len(single) == 1 < len(as_written)):
    sys.exit("The behaviour has changed.")
print("As described.")
PYTHON
