"""Builds the demo from seeds: `python -m demo.build all`, or one step by its name; see demo/README.md."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from demo.build import autoencoder, dataset, denoiser, report
from demo.build.concept import write_pictures
from demo.build.pair import PROCESSES, Budget
from demo.build.single_file import read_single_file, write_single_file

VAE_MINUTES = 11.0
UNET_MINUTES = 65.0
DECODER_MINUTES = 40.0
AGAIN_MINUTES = 50.0


def write_model() -> None:
    """Writes the weights of the work folder as demo/model.safetensors."""
    unet, text = denoiser.read_denoiser()
    write_single_file(report.MODEL_FILE, unet, autoencoder.read_vae(), text)


def unpack_model() -> None:
    """Puts the weights of demo/model.safetensors into the work folder, to be trained on from there."""
    unet, vae, text = read_single_file(report.MODEL_FILE)
    torch.save(vae.state_dict(), dataset.WORK / autoencoder.FILE)
    denoiser.encode_all(vae, dataset.WORK)
    denoiser.unpack_denoiser(unet, text, dataset.WORK)


def train_again(minutes: float, rate: float) -> None:
    """Trains the finished model on: decoder and UNet side by side, which don't touch one another's ground.

    The encoder stays, so latents do, and both can be learnt at once, on a core each.
    """
    unpack_model()
    budget, work = Budget(1_000_000, minutes), dataset.WORK
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(autoencoder.refine_decoder, work, budget, processes=1),
            pool.submit(denoiser.train_denoiser, work, budget, resume=True, peak=rate, processes=1),
        ]
    for each in both:
        each.result()


def steps(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Every step by its name, in their order."""

    def budget(minutes: float) -> Budget:
        return Budget(options.steps, options.minutes or minutes)

    def unet() -> None:
        denoiser.train_denoiser(
            dataset.WORK,
            budget(UNET_MINUTES),
            resume=options.resume,
            peak=options.rate,
            processes=options.processes,
        )

    def decoder() -> None:
        autoencoder.refine_decoder(dataset.WORK, budget(DECODER_MINUTES), processes=options.processes)

    return {
        "draw": dataset.draw_all,
        "vae": lambda: autoencoder.train_vae(dataset.WORK, budget(VAE_MINUTES)),
        "unet": unet,
        "decoder": decoder,
        "write": write_model,
        "pictures": write_pictures,
        "judge": report.judge_base,
        "sheets": report.write_sheets,
        "lora": report.judge_loras,
        "tables": report.write_tables,
    }


def main() -> None:
    """Runs one step, or all; `unpack` and `again` are none of all, because they begin with the finished file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    known = ("draw", "vae", "unet", "decoder", "write", "pictures", "judge", "sheets", "lora", "tables")
    parser = argparse.ArgumentParser(prog="python -m demo.build", description=__doc__)
    parser.add_argument("step", choices=(*known, "unpack", "again", "all"))
    parser.add_argument("--steps", type=int, default=1_000_000, help="optimizer steps at most")
    parser.add_argument(
        "--minutes", type=float, help="minutes at most (vae 11, unet 65, decoder 40, again 50 unless said)"
    )
    parser.add_argument("--rate", type=float, default=denoiser.PEAK_RATE, help="highest learning rate of the step unet")
    parser.add_argument("--resume", action="store_true", help="the step unet goes on from its last saved weights")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="processes of the steps unet and decoder")
    options = parser.parse_args()
    if options.step == "unpack":
        unpack_model()
    if options.step == "again":
        train_again(options.minutes or AGAIN_MINUTES, options.rate)
    for name, work in steps(options).items():
        if options.step in (name, "all"):
            work()


if __name__ == "__main__":
    main()
