"""Settings of how it learns: the optimizer, its rates and their schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainer.config.values import parse_rate, parse_steps_or_share
from trainer.optimizers import OPTIMIZERS, optimizer_name
from trainer.schedules import SCHEDULES, TORCH_CLASSES, class_name, using
from trainer.settings.section import NO_ENTRY, OWN_NAME, Entry, Follows, Section, Show, There, setting


def _named(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _of_shapes(key: str) -> Mapping[str, tuple[object, ...]]:
    """Return when a setting of the schedule matters: the names of those that read it, and no class of torch's."""
    return {"lr_scheduler_type": ("",), "lr_scheduler": using(key)}


class OptimizerSection(Section):
    """How weights are changed: the optimizer, its rates and their course."""

    optimizer_type: str = setting(
        "AdamW",
        Show("Optimizer", tab="basic", group="Optimizer", place=6, also=("optimizer",)),
        resume="fixed",
        metadata=Entry("ss_optimizer", of_run=True),
        sd_scripts=There("AdamW", switches={"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}),
        choices=tuple(OPTIMIZERS),
        parse=optimizer_name,
        open_choices=True,
        rule=f"one of {_named(OPTIMIZERS)}, or the name of a class such as package.Class",
    )
    """How gradients become changes. AdamW is the one most recipes are written for.

    The 8-bit ones do the same with less memory, the paged ones move to main memory while the GPU's is short; both need
    bitsandbytes. Prodigy and those that begin with DAdapt find the rate themselves: set the learning rate to 1, and one
    rate for all parts. DAdaptAdaGrad hardly leaves its first guess, d0=1e-6: give it d0=2e-3 in its arguments; give
    DAdaptSGD growth_rate=1.1, or it may find far too high a rate. Those that end in ScheduleFree need no schedule, and
    save an average. Adafactor takes the least memory. Lion wants a rate three to ten times smaller. CAME is near
    Adafactor, and wants a warm-up: its first steps are up to 37 times the rate. Any other optimizer of an installed
    package does too, by the name of its class, such as "pytorch_optimizer.AdaBelief"; then nothing is known here of its
    rates and arguments.
    """

    optimizer_args: tuple[str, ...] = setting(
        (),
        Show("Optimizer arguments", group="Optimizer", widget="list"),
        resume="learning",
        metadata=Entry("ss_optimizer", of_run=True),
        sd_scripts=There(()),
    )
    """More of the optimizer's own arguments, each as "name=value", such as "weight_decay=0.1" or "betas=0.9,0.99"."""

    learning_rate: float = setting(
        1e-4,
        Show("Learning rate", tab="basic", group="Optimizer", place=7, also=("lr",)),
        resume="schedule",
        metadata=OWN_NAME,
        sd_scripts=There(2e-6),
        ge=0,
        le=100,
        changes_memory=False,
    )
    """How large each change is. 1e-4 to 5e-5 for AdamW; exactly 1 for those that find the rate themselves.

    Too high and pictures burn or turn to noise, too low and nothing is learned. Alpha / rank scales it. 0 trains
    nothing that has no rate of its own.
    """

    unet_lr: float | None = setting(
        None,
        Show("UNet learning rate", group="Optimizer"),
        resume="schedule",
        metadata=OWN_NAME,
        sd_scripts=There(None),
        ge=0,
        le=100,
        changes_memory=False,
    )
    """The UNet's own learning rate. Left out it follows the learning rate; 0 = the UNet is not trained."""

    text_encoder_lr: float | tuple[float, ...] = setting(
        5e-5,
        Show("Text encoder learning rate", group="Optimizer", also=("te_lr", "learning_rate_te")),
        resume="schedule",
        metadata=OWN_NAME,
        sd_scripts=There(Follows("learning_rate")),
        parse=parse_rate,
        rule="a number from 0 to 100, or a list of one for each text encoder",
        changes_memory=False,
    )
    """The text encoder's own learning rate, lower than the UNet's; 0 = it is not trained and not in the file.

    5e-5 or less for Stable Diffusion 1.5: it overfits first, and then words lose their meaning. With an optimizer that
    finds the rate itself, such as Prodigy, it follows the learning rate where it is left out. SDXL has two text
    encoders: [5e-5, 1e-5] is a rate for each, and a single number holds for both.
    """

    lr_scheduler: str = setting(
        "cosine",
        Show("Learning rate schedule", group="Schedule", also=("scheduler",)),
        resume="schedule",
        metadata=OWN_NAME,
        sd_scripts=There("constant"),
        choices=SCHEDULES,
        changes_memory=False,
    )
    """How the rate goes on after the warm-up: constant, or falling along a line, a cosine, a power or in levels.

    "constant" has no warm-up; use "constant_with_warmup" for one. "cosine_with_restarts" falls several times over.
    "warmup_stable_decay" stays level and falls over the last steps, as many as the decay says. "rex" is slow to fall
    and then fast. "piecewise_constant" takes its levels from the arguments. "adafactor" is for Adafactor with
    relative_step, which finds the rates itself. Schedule-free optimizers use none of them.
    """

    lr_warmup_steps: int | float = setting(
        0.05,
        Show(
            "Warm-up",
            group="Schedule",
            unit="steps",
            when=_of_shapes("lr_warmup_steps"),
            also=("lr_warmup", "warmup", "warmup_steps", "warmup_ratio"),
        ),
        resume="schedule",
        metadata=OWN_NAME,
        sd_scripts=There(0),
        parse=parse_steps_or_share,
        rule="0 for none, a whole number of steps, or a share of all steps below 1",
        changes_memory=False,
    )
    """Let the rate rise from 0 over so many steps; below 1 it is a share of all steps: 0.05 is a twentieth.

    Steadies the start of training, above all at high rates.
    """

    lr_scheduler_num_cycles: int = setting(
        1,
        Show("Cycles", group="Schedule", when=_of_shapes("lr_scheduler_num_cycles")),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        ge=0,
        le=10_000,
        changes_memory=False,
    )
    """How often "cosine_with_restarts" falls from the full rate to 0; how many halves of a cosine the others make.

    In "cosine_with_min_lr" and in the decay of "warmup_stable_decay" 1 falls, 2 falls and rises again. 0 never falls.
    """

    lr_scheduler_power: float = setting(
        1.0,
        Show("Power", group="Schedule", when=_of_shapes("lr_scheduler_power")),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        gt=0,
        le=100,
        changes_memory=False,
    )
    """The power of "polynomial"; 1 is a straight line."""

    lr_decay_steps: int | float = setting(
        0,
        Show("Decay", group="Schedule", unit="steps", when=_of_shapes("lr_decay_steps")),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(0),
        parse=parse_steps_or_share,
        rule="0 for none, a whole number of steps, or a share of all steps below 1",
        changes_memory=False,
    )
    """Let the rate of "warmup_stable_decay" fall over the last so many steps; below 1 it is a share of all steps."""

    lr_scheduler_min_lr_ratio: float | None = setting(
        None,
        Show("Lowest share of the rate", group="Schedule", when=_of_shapes("lr_scheduler_min_lr_ratio")),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(None),
        ge=0,
        le=1,
        changes_memory=False,
    )
    """How far the rate falls: 0.1 ends at a tenth of it. "cosine_with_min_lr" needs it, or the argument min_lr."""

    lr_scheduler_timescale: int | None = setting(
        None,
        Show("Timescale", group="Schedule", unit="steps", when=_of_shapes("lr_scheduler_timescale")),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(None),
        zero_is_off=True,
        ge=1,
        le=1_000_000_000,
        changes_memory=False,
    )
    """After so many steps "inverse_sqrt" has fallen to seven tenths. Left out: the warm-up, or 10,000 without one."""

    lr_scheduler_type: str = setting(
        "",
        Show("Schedule of PyTorch", group="Schedule"),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
        choices=("", *TORCH_CLASSES),
        parse=class_name,
        changes_memory=False,
    )
    """A class of torch.optim.lr_scheduler in place of the schedule above; it has no warm-up. Empty: none.

    Its arguments are set below, such as T_max=1000 and eta_min=1e-6 for CosineAnnealingLR.
    """

    lr_scheduler_args: tuple[str, ...] = setting(
        (),
        Show("Schedule arguments", group="Schedule", widget="list"),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=There(()),
        changes_memory=False,
    )
    """More of the schedule's own arguments, each as "name=value", such as "lr_end=1e-6" for polynomial.

    The line below says which ones the chosen schedule takes.
    """

    max_grad_norm: float = setting(
        1.0,
        Show("Gradient clipping", group="Optimizer"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.0),
        ge=0,
        le=1_000_000,
        changes_memory=False,
    )
    """Scale gradients down where their norm over all trained weights is larger than this; 0 = never.

    Keeps one odd batch from undoing many good ones. Adafactor does its own: give it 0 here.
    """
