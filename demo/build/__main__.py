"""`python -m demo.build STEP`: draw, vae, unet, write, judge, sheets, pictures or all; see demo/README.md."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from demo.build import dataset
from demo.build.autoencoder import read_vae, train_vae
from demo.build.denoiser import PEAK_RATE, read_denoiser, train_denoiser
from demo.build.pair import Budget
from demo.build.sampling import Model
from demo.build.single_file import write_single_file

MODEL_FILE = Path(__file__).parents[1] / "model.safetensors"


def work_model() -> Model:
    """The model of the work folder, in the precision that it was trained in."""
    unet, text = read_denoiser()
    return Model(unet, read_vae(), text)


def main() -> None:
    """Runs one step of the build."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m demo.build", description=__doc__)
    parser.add_argument("step", choices=("draw", "vae", "unet", "write"))
    parser.add_argument("--steps", type=int, default=1_000_000, help="optimizer steps at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes at most")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate of the step unet")
    parser.add_argument("--resume", action="store_true", help="the step unet goes on from its last saved weights")
    options = parser.parse_args()
    budget = Budget(options.steps, options.minutes)
    if options.step == "draw":
        dataset.draw_all()
    if options.step == "vae":
        train_vae(dataset.WORK, budget)
    if options.step == "unet":
        train_denoiser(dataset.WORK, budget, resume=options.resume, peak=options.rate)
    if options.step == "write":
        model = work_model()
        write_single_file(MODEL_FILE, model.unet, model.vae, model.text)


if __name__ == "__main__":
    main()
