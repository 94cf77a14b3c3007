"""Runs sd-scripts' train_network.py as it is, with notes of what happened when. Its own interpreter runs this.

    python sd_scripts_child.py TIMES.json CHECKOUT CONFIGS.json [arguments of train_network.py]

sd-scripts has the widths of Stable Diffusion 1.5 as constants; for models of other widths they are replaced by those of
CONFIGS.json before anything is built. Nothing else is changed.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.moments import note, write


def set_widths(configs: dict[str, dict[str, Any]]) -> None:
    """Replace sd-scripts' constants by a model's configuration."""
    model_util: Any = import_module("library.model_util")
    original_unet: Any = import_module("library.original_unet")
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    original_unet.BLOCK_OUT_CHANNELS = tuple(unet["block_out_channels"])
    original_unet.TIMESTEP_INPUT_DIM = unet["block_out_channels"][0]
    original_unet.TIME_EMBED_DIM = 4 * unet["block_out_channels"][0]
    original_unet.NORM_GROUPS = original_unet.TRANSFORMER_NORM_NUM_GROUPS = unet["norm_num_groups"]
    clip = model_util.CLIPTextConfig
    of_text = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim")
    model_util.CLIPTextConfig = lambda **given: clip(**{**given, **{key: text[key] for key in of_text}})
    of_unet = ("sample_size", "block_out_channels", "cross_attention_dim", "attention_head_dim")
    model_util.create_unet_diffusers_config = changed(model_util.create_unet_diffusers_config, unet, of_unet)
    of_vae = ("sample_size", "block_out_channels", "layers_per_block", "norm_num_groups")
    model_util.create_vae_diffusers_config = changed(model_util.create_vae_diffusers_config, vae, of_vae)


def changed(make: Any, configs: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return a maker of configurations that has some values of ours."""
    return lambda *given: {**make(*given), **{key: configs[key] for key in keys}}


def watch(train_network: Any, group: Any) -> None:
    """Note the steps, where the progress bar counts them, and when caching begins and ends."""
    caching = group.new_cache_latents

    class Bar(train_network.tqdm):  # type: ignore[misc,name-defined]
        def update(self, n: float = 1) -> Any:
            if self.desc == "steps":
                note("step", step=self.n + n)
            return super().update(n)

    def new_cache_latents(self: Any, *given: Any) -> None:
        total = sum(len(dataset.image_data) for dataset in self.datasets)
        note("caching latents", done=0, total=total)
        caching(self, *given)
        note("caching latents", done=total, total=total)

    train_network.tqdm = Bar
    group.new_cache_latents = new_cache_latents


def main() -> None:
    """Train, and write the notes."""
    target, checkout, configs = sys.argv[1:4]
    del sys.argv[1:4]  # sd-scripts reads the arguments a second time
    sys.path.insert(0, checkout)
    torch, train_network = import_module("torch"), import_module("train_network")
    train_util = import_module("library.train_util")

    set_widths(json.loads(Path(configs).read_text(encoding="utf-8")))
    watch(train_network, train_util.DatasetGroup)
    parser = train_network.setup_parser()
    args = parser.parse_args()
    train_util.verify_command_line_training_args(args)
    args = train_util.read_config_from_file(args, parser)
    note("ready")
    train_network.NetworkTrainer().train(args)
    note("end")
    write(target, torch)


if __name__ == "__main__":
    main()
