"""Settings of what is asked of the model: the loss, and the noise that it is to find."""

from __future__ import annotations

from typing import Literal

from trainer.config.values import DDPM_ONLY, FLOW_ONLY
from trainer.process import FLOW
from trainer.settings.section import NO_ENTRY, OWN_NAME, Entry, Section, Show, There, setting


class LossSection(Section):
    """What counts as wrong, and how much at which noise level."""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = setting(
        "l2", Show("Loss", group="Loss"), resume="learning", metadata=OWN_NAME, sd_scripts=There("l2")
    )
    """How the difference between predicted and true noise is counted.

    l2 is the standard; huber and smooth_l1 let odd pictures count for less.
    """

    huber_schedule: Literal["constant", "exponential", "snr"] = setting(
        "snr",
        Show("Huber schedule", group="Loss", when={"loss_type": ("huber", "smooth_l1")}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There("snr"),
    )
    """How the bend of the Huber losses changes with the noise level."""

    huber_c: float = setting(
        0.1,
        Show("Huber bend", group="Loss", when={"loss_type": ("huber", "smooth_l1")}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0.1),
        gt=0,
        le=100,
    )
    """Where the Huber losses bend from square to straight; smaller is more robust and blurs more."""

    huber_scale: float = setting(
        1.0,
        Show(
            "Huber scale",
            group="Loss",
            when={"loss_type": ("huber", "smooth_l1"), "huber_schedule": ("constant", "exponential")},
        ),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.0),
        gt=0,
        le=1000,
    )
    """Multiplies the bend; the snr schedule does not use it."""

    min_snr_gamma: float | None = setting(
        None,
        Show("Min SNR gamma", group="Loss", widget="slider", when=DDPM_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        le=1000,
        changes_memory=False,
    )
    """Limit how much steps with little noise count; 5 is the value of the paper, lower limits more.

    Learns faster and steadier. Not together with the debiased loss: both do the same job.
    """

    debiased_estimation_loss: bool = setting(
        False,
        Show("Debiased estimation", group="Loss", when=DDPM_ONLY),
        resume="learning",
        metadata=Entry("ss_debiased_estimation"),
        sd_scripts=There(False),
    )
    """Weight the loss by one over the square root of the signal-to-noise ratio: noisy steps count for more.

    An alternative to min SNR gamma, not an addition.
    """

    scale_v_pred_loss_like_noise_pred: bool = setting(
        False,
        Show("Scale v loss like noise loss", group="Loss", when={**DDPM_ONLY, "v_parameterization": (True,)}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Give a v-prediction model's loss the weights that noise prediction has."""

    v_pred_like_loss: float | None = setting(
        None,
        Show("V-like loss", group="Loss", when={**DDPM_ONLY, "v_parameterization": (False,)}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        le=1000,
    )
    """Add so much of a loss weighted as v-prediction has it, for models that predict noise."""


class NoiseSection(Section):
    """The noise that is put on latents, and at which levels."""

    noise_offset: float | None = setting(
        None,
        Show("Noise offset", group="Noise", widget="slider", when=DDPM_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        le=10,
    )
    """Shift the noise of each channel as a whole, so that darker and brighter pictures can be learned.

    0.05 to 0.15 is in use; more washes colours out.
    """

    noise_offset_random_strength: bool = setting(
        False,
        Show("Random noise offset", group="Noise", when={**DDPM_ONLY, "noise_offset": "*"}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(False),
    )
    """Draw the strength of the noise offset anew each time, from 0 to its value."""

    adaptive_noise_scale: float | None = setting(
        None,
        Show("Adaptive noise scale", group="Noise", when={**DDPM_ONLY, "noise_offset": "*"}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        ge=-10,
        le=10,
    )
    """Add to the noise offset so many times the mean of the latents; needs a noise offset."""

    multires_noise_iterations: int | None = setting(
        None,
        Show("Multi-resolution noise", group="Noise", when=DDPM_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        ge=1,
        le=64,
    )
    """Add noise at so many coarser scales, an alternative to the noise offset; 6 to 10 is in use."""

    multires_noise_discount: float = setting(
        0.3,
        Show("Multi-resolution discount", group="Noise", when={**DDPM_ONLY, "multires_noise_iterations": "*"}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0.3),
        ge=0,
        le=1,
    )
    """How much weaker each coarser scale is; 0.3 for small sets, up to 0.8 for large ones."""

    ip_noise_gamma: float | None = setting(
        None,
        Show("Input perturbation", group="Noise"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        zero_is_off=True,
        gt=0,
        le=10,
    )
    """Put so much extra noise on the input but not on what is to be predicted; 0.1 is usual, against overfitting."""

    ip_noise_gamma_random_strength: bool = setting(
        False,
        Show("Random input perturbation", group="Noise", when={"ip_noise_gamma": "*"}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(False),
    )
    """Draw the strength of the input perturbation anew each time, from 0 to its value."""

    min_timestep: int = setting(
        0,
        Show("Lowest timestep", group="Noise", widget="slider", when=DDPM_ONLY),
        resume="learning",
        metadata=Entry("modelspec.timestep_range", of_run=True),
        sd_scripts=There(0),
        ge=0,
        le=999,
        within="subset",
    )
    """Train no timestep below this one; low timesteps hold little noise and shape detail."""

    max_timestep: int = setting(
        1000,
        Show("Highest timestep", group="Noise", widget="slider", when=DDPM_ONLY),
        resume="learning",
        metadata=Entry("modelspec.timestep_range", of_run=True),
        sd_scripts=There(1000),
        ge=1,
        le=1000,
        within="subset",
    )
    """Train only timesteps below this one; high timesteps hold much noise and shape the composition."""

    zero_terminal_snr: bool = setting(
        False,
        Show("Zero terminal SNR", group="Noise", when=DDPM_ONLY),
        resume="learning",
        metadata=Entry(of_run=True),
        sd_scripts=There(False),
    )
    """Change the noise schedule so that its last step is pure noise, for v-prediction models made that way."""


class FlowSection(Section):
    """Rectified flow, as FLUX.1, Chroma and Anima have it: which noise levels are trained, and as what."""

    timestep_sampling: Literal["sigma", "uniform", "sigmoid", "shift", "flux_shift"] = setting(
        "sigmoid",
        Show("Noise levels", group="Rectified flow", when=FLOW_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There("sigma", process=FLOW.name),
    )
    """How noise levels are drawn: in the middle more often (sigmoid), moved towards noise (shift), all alike (uniform).

    "flux_shift" moves them by the size of the picture, as FLUX.1 was trained; "shift" by the number below: 3.1582 is
    what flux_shift is at 1024 x 1024. "sigma" takes one of 1000 levels, moved by that number too.
    """

    sigmoid_scale: float = setting(
        1.0,
        Show(
            "Sigmoid scale",
            group="Rectified flow",
            when={**FLOW_ONLY, "timestep_sampling": ("sigmoid", "shift", "flux_shift")},
        ),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.0, process=FLOW.name),
        gt=0,
        le=100,
    )
    """How far noise levels spread from the middle: below 1 they gather there, above 1 they go to both ends."""

    discrete_flow_shift: float = setting(
        3.0,
        Show(
            "Flow shift",
            group="Rectified flow",
            when={**FLOW_ONLY, "timestep_sampling": ("shift", "sigma")},
        ),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(3.0, process=FLOW.name),
        gt=0,
        le=100,
    )
    """How far noise levels are moved towards noise; 1 leaves them. Acts on "shift" and on "sigma" alone."""

    weighting_scheme: Literal["none", "uniform", "sigma_sqrt", "cosmap", "logit_normal", "mode"] = setting(
        "none",
        Show("Weighting", group="Rectified flow", when=FLOW_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There("none", process=FLOW.name),
    )
    """What counts for more. logit_normal and mode act on which levels "sigma" draws, the others on the loss.

    sigma_sqrt and cosmap weight the loss by the noise level, for FLUX.1 and Chroma only where the prediction is
    "sigma_scaled"; none and uniform weight nothing.
    """

    logit_mean: float = setting(
        0.0,
        Show("Logit mean", group="Rectified flow", when={**FLOW_ONLY, "weighting_scheme": ("logit_normal",)}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0.0, process=FLOW.name),
        ge=-100,
        le=100,
    )
    """The middle of logit_normal. Above 0 it favours little noise, since "sigma" counts from noise down."""

    logit_std: float = setting(
        1.0,
        Show("Logit spread", group="Rectified flow", when={**FLOW_ONLY, "weighting_scheme": ("logit_normal",)}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.0, process=FLOW.name),
        gt=0,
        le=100,
    )
    """The spread of logit_normal."""

    mode_scale: float = setting(
        1.29,
        Show("Mode scale", group="Rectified flow", when={**FLOW_ONLY, "weighting_scheme": ("mode",)}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.29, process=FLOW.name),
        ge=-1,
        le=1.75,
    )
    """How much "mode" favours the middle."""

    model_prediction_type: Literal["raw", "additive", "sigma_scaled"] = setting(
        "raw",
        Show("Prediction", group="Rectified flow", when=FLOW_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There("sigma_scaled", process=FLOW.name),
    )
    """What is compared with noise minus picture: the model's output itself (raw), or something made of it.

    Leave it at raw: only there the untrained model is near the goal. "additive" adds the noisy input, "sigma_scaled"
    takes the output times the noise level from it, and is the default of sd-scripts.
    """

    guidance_scale: float = setting(
        1.0,
        Show("Guidance", group="Rectified flow", when=FLOW_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(3.5, process=FLOW.name),
        ge=0,
        le=100,
    )
    """What a distilled model, such as FLUX.1 dev, is told in training of how strongly to follow the caption.

    1 leaves the distillation alone and is what most recipes take; pictures are then made with 3.5 as ever. Models that
    are told none, such as schnell, are the same with any number.
    """
