#!/usr/bin/env bash
# diffusers' DDIM and PNDM schedulers, set up as Stable Diffusion's own configurations set them up ("leading" spacing,
# steps_offset 1), begin at timestep (steps - 1) * (1000 // steps) + 1. The division rounds down, so the first timestep
# is not near 1000 but jumps: 997 for 250 steps, 751 for 251; 999 for 500, 501 for 501. Latents of pure noise are then
# taken for latents that hold a quarter of a picture, and the result is flat and grey. The good guess is the opposite,
# that more steps bring a picture nearer to what the model can do; no error and no warning says otherwise.
# Seen with diffusers 0.42.1 and torch 2.13.0 on Linux, Python 3.11; expected output at the end of this file.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    "torch==2.13.0" "diffusers==0.42.1" "transformers>=5,<6" >"$folder/install.log" 2>&1 \
    || { tail -n 5 "$folder/install.log"; exit 2; }

"$folder/venv/bin/python" - <<'PYTHON' >"$folder/seen" 2>"$folder/errors" || { tail -n 5 "$folder/errors"; exit 2; }
import diffusers
from diffusers import DDIMScheduler, PNDMScheduler

stable = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
schedulers = {
    "DDIM": DDIMScheduler(**stable, clip_sample=False),
    "PNDM": PNDMScheduler(**stable, skip_prk_steps=True),
}
for name, scheduler in schedulers.items():
    for steps in (50, 250, 251, 333, 334, 500, 501, 750):
        scheduler.set_timesteps(steps)
        first = int(scheduler.timesteps[0])
        print(f"{name} {steps:4d} steps: first timestep {first:3d}, alpha-bar {scheduler.alphas_cumprod[first]:.3f}")
PYTHON

cat "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "The behaviour has changed."; exit 1; }
DDIM   50 steps: first timestep 981, alpha-bar 0.006
DDIM  250 steps: first timestep 997, alpha-bar 0.005
DDIM  251 steps: first timestep 751, alpha-bar 0.056
DDIM  333 steps: first timestep 997, alpha-bar 0.005
DDIM  334 steps: first timestep 667, alpha-bar 0.104
DDIM  500 steps: first timestep 999, alpha-bar 0.005
DDIM  501 steps: first timestep 501, alpha-bar 0.275
DDIM  750 steps: first timestep 750, alpha-bar 0.056
PNDM   50 steps: first timestep 981, alpha-bar 0.006
PNDM  250 steps: first timestep 997, alpha-bar 0.005
PNDM  251 steps: first timestep 751, alpha-bar 0.056
PNDM  333 steps: first timestep 997, alpha-bar 0.005
PNDM  334 steps: first timestep 667, alpha-bar 0.104
PNDM  500 steps: first timestep 999, alpha-bar 0.005
PNDM  501 steps: first timestep 501, alpha-bar 0.275
PNDM  750 steps: first timestep 750, alpha-bar 0.056
EXPECTED
echo "As described: fewer steps begin in more noise than many do."
