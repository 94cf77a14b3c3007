"""Settings of validation: on which pictures a run is judged, how often, and at what price."""

from __future__ import annotations

from typing import Any

from trainer.settings.section import NO_ENTRY, NOT_THERE, OWN_NAME, Section, Show, There, setting

_OFTEN: dict[str, Any] = {
    "resume": "free",
    "metadata": OWN_NAME,
    "sd_scripts": There(None, matters=False),
    "zero_is_off": True,
    "ge": 1,
}
_EPOCHS: dict[str, Any] = {**_OFTEN, "le": 1_000_000}
_STEPS: dict[str, Any] = {**_OFTEN, "le": 1_000_000_000}
"""Of settings that say how often, or how much at most, is measured."""


class ValidationSection(Section):
    """Measures the loss at fixed noise, on pictures that are not trained where there are some."""

    val_data_dir: str = setting(
        "",
        Show("Validation folder", group="Validation", widget="folder", also=("validation_dir", "val_dir")),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Optional: a folder of pictures with captions, laid out as the picture folder, that are only judged by.

    With it no picture is taken from training. Pictures of the same concept that the training never sees tell best
    which saved file is the good one.
    """

    validation_split: float = setting(
        0.0,
        Show("Share for validation", group="Validation", also=("val_split", "validation_share")),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(0.0),
        ge=0,
        lt=1,
        within="dataset",
    )
    """The share of each folder's pictures that is not trained but judged by: 0.1 keeps 3 of 30. 0 keeps none.

    Without it, and without a folder for it, the training pictures are measured: that tells how well they are learned,
    and nothing of overfitting. Regularisation pictures are never kept, nor are those that a metadata file lists.
    """

    validation_split_min_images: int = setting(
        0,
        Show("Share from", group="Validation", unit="pictures on"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=0,
        le=1_000_000,
    )
    """Keep the share only where there are so many training pictures or more: a small set needs each of them."""

    validation_seed: int | None = setting(
        None,
        Show("Seed of validation", group="Validation"),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(None, matters=False),
        ge=0,
        le=2**32 - 1,
        within="dataset",
    )
    """Decides which pictures are kept, and the noise that they are measured with. Empty: the seed of the training."""

    validate_every_n_epochs: int | None = setting(
        None,
        Show("Validate every", group="Validation", unit="epochs"),
        **_EPOCHS,
    )
    """Validate after every so many epochs. Empty: after each epoch.

    Files that are saved every so many epochs or steps are measured in any case, of more than 200 of them 200.
    """

    validate_every_n_steps: int | None = setting(
        None,
        Show("Validate every", group="Validation", unit="steps"),
        **_STEPS,
    )
    """Validate after every so many steps too."""

    max_validation_steps: int | None = setting(
        None,
        Show("Validate at most", group="Validation", unit="batches"),
        **_STEPS,
    )
    """Judge by no more than so many batches of pictures. Empty: by all that the largest share of time allows."""

    max_validation_share: float = setting(
        0.05,
        Show("Largest share of time", group="Validation"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=0,
        le=1,
    )
    """What validation may take of the run's time: 0.05 is a twentieth. 0 turns validation off.

    Where all pictures would take more, fewer of them are measured, and then less often. At a saved file it is sixteen
    measurements at least, such as eight pictures at two of the eight timesteps, so a short run that saves often takes
    more. The plan says what it comes to.
    """

    validation_patience: int = setting(
        0,
        Show("Stop after", group="Validation", unit="validations without a better one"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=0,
        le=1_000_000,
    )
    """End the run, and save it, once so many validations in a row were not better than the best before. 0: never.

    Acts with pictures that are not trained, of a folder or a share. A file of the best moment is there if one was saved
    then.
    """
