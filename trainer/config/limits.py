"""Settings that keep an adapter from learning too much: what is left out by chance, and a limit of its norm."""

from __future__ import annotations

from trainer.settings.section import OWN_NAME, Entry, Section, Show, There, setting

_IN_ARGUMENTS = Entry("ss_network_args", of_run=True)


class LimitsSection(Section):
    """What of an adapter is left out by chance while training, and how much it may add to a weight."""

    network_dropout: float | None = setting(
        None,
        Show("Dropout", group="Limits", when={"network_type": ("lora",)}, also=("dropout", "neuron_dropout")),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        lt=1,
    )
    """The share of single numbers between a LoRA's two matrices that is left out in each step; 0.1 to 0.3 is in use.

    Works against learning the pictures by heart. Sample pictures and validation are made with all of the LoRA.
    """

    rank_dropout: float | None = setting(
        None,
        Show("Dropout of ranks", group="Limits", when={"network_type": ("lora", "locon", "loha", "lokr", "oft")}),
        resume="learning",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(None, inside="network_args"),
        zero_is_off=True,
        gt=0,
        lt=1,
    )
    """The share of ranks that is left out of each picture in each step; with LyCORIS' kinds, of rows of the weight.

    With oft it is the share of numbers of the rotation, as LyCORIS has it, which changes the model from the start on.
    """

    module_dropout: float | None = setting(
        None,
        Show("Dropout of layers", group="Limits"),
        resume="learning",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(None, inside="network_args"),
        zero_is_off=True,
        gt=0,
        lt=1,
    )
    """The share of layers that take no part in a batch, as if they had no adapter."""

    scale_weight_norms: float | None = setting(
        None,
        Show(
            "Largest norm of a layer",
            group="Limits",
            when={"network_type": ("lora", "locon", "loha", "lokr", "oft")},
            also=("max_norm", "max_norm_regularization"),
        ),
        resume="fixed",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        le=1_000_000,
    )
    """Scale what a layer adds to its weight down to this norm after each step; 1 is usual, lower is weaker.

    Keeps single layers from growing too strong, so that several LoRAs go better together. `python launch.py verify`
    shows the norms of a file.
    """
