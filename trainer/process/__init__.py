"""What noise is, and what is asked of the model: one definition for training and for previews. No torch until `build`.

A family says with `process` of which kind it is: `DDPM` (Stable Diffusion: it predicts noise or velocity at one of 1000
timesteps) or `FLOW` (rectified flow: it predicts noise minus latents at a sigma from 0 to 1). Its bundle builds the
`Process` once, from what the model says of itself and from the settings, which win. Training and previews then take all
their numbers from that object:

    draws = process.drawing(shape, step, slots, seed=seed)      # on the CPU, in a loader's worker
    noised = process.corrupt(latents, draws)                    # the model's input, what it is told, its target
    prediction = bundle.predict(noised.latents, noised.timesteps, texts, sizes)
    losses = process.losses(prediction, noised, weights)        # one for each sample
    scheduler = schedulers.make_scheduler(sampler, process)     # and a picture is drawn down the same levels

**What the model is told.** `bundle.predict` gets one number for each sample: with `ddpm` the timestep, int64 from 0 to
999; with `flow` sigma itself, float32 from 0 (the picture) to 1 (pure noise). A family whose model wants sigma times
1000, or 1 - sigma, makes it so in its own `predict`.

Random numbers enter in one place, `draws.draw`, and are a function of (seed, step, slot) alone; everything after it is
arithmetic in float32 that waits for no device. Latents have any shape after the batch: [b, ...].
"""

from __future__ import annotations

from trainer.process.kinds import DDPM, FLOW, PROCESSES, ProcessKind

__all__ = ["DDPM", "FLOW", "PROCESSES", "ProcessKind"]
