"""Builds the demo from seeds: `python -m demo.build all`, or one step by its name; see demo/README.md."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from demo.build import dataset, report
from demo.build.autoencoder import read_vae, train_vae
from demo.build.concept import write_pictures
from demo.build.denoiser import PEAK_RATE, read_denoiser, train_denoiser
from demo.build.pair import Budget
from demo.build.single_file import write_single_file

VAE_MINUTES = 11.0
UNET_MINUTES = 65.0


def write_model() -> None:
    """Writes the weights of the work folder as demo/model.safetensors."""
    unet, text = read_denoiser()
    write_single_file(report.MODEL_FILE, unet, read_vae(), text)


def steps(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Every step by its name, in their order."""

    def budget(minutes: float) -> Budget:
        return Budget(options.steps, options.minutes or minutes)

    return {
        "draw": dataset.draw_all,
        "vae": lambda: train_vae(dataset.WORK, budget(VAE_MINUTES)),
        "unet": lambda: train_denoiser(dataset.WORK, budget(UNET_MINUTES), resume=options.resume, peak=options.rate),
        "write": write_model,
        "pictures": write_pictures,
        "judge": report.judge_base,
        "sheets": report.write_sheets,
        "lora": report.judge_loras,
    }


def main() -> None:
    """Runs one step, or all."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m demo.build", description=__doc__)
    parser.add_argument("step", choices=("draw", "vae", "unet", "write", "pictures", "judge", "sheets", "lora", "all"))
    parser.add_argument("--steps", type=int, default=1_000_000, help="optimizer steps at most")
    parser.add_argument("--minutes", type=float, help="minutes at most (vae 11, unet 65 unless said)")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate of the step unet")
    parser.add_argument("--resume", action="store_true", help="the step unet goes on from its last saved weights")
    options = parser.parse_args()
    for name, work in steps(options).items():
        if options.step in (name, "all"):
            work()


if __name__ == "__main__":
    main()
