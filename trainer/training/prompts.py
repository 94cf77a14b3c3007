"""The sample prompts of a run, which may be changed while it goes on; see `trainer.results.prompt_changes`."""

from __future__ import annotations

from dataclasses import replace

from trainer.families import FAMILIES
from trainer.ground import events
from trainer.ground.errors import ConfigError
from trainer.preview.prompts import SamplePrompt, prompt_notices, read_prompts, settle
from trainer.results import prompt_changes
from trainer.training.training import Training


class Prompts:
    """What is drawn after which step. Only the rank that draws asks."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._read: tuple[str | None, tuple[SamplePrompt, ...]] = (None, training.plan.prompts)

    def after(self, step: int, *, begun: bool = False) -> tuple[SamplePrompt, ...]:
        """Return the prompts of the pictures after a step; what was wanted meanwhile is taken, and told.

        Prompts that cannot be read are told too, and those before stay.

        Args:
            begun: some of these pictures are drawn already; what is wanted now is for the next ones.
        """
        training = self._training
        try:
            if not begun:
                self._take(step)
        except OSError as error:
            training.tell(events.Warned(message=f"The prompts stay as they are: {error.strerror or error}."))
        change = prompt_changes.acting(training.folder, step)
        text = change.prompts if change else None
        if text != self._read[0]:
            prompts = training.plan.prompts if text is None else self._parsed(text)
            self._read = (text, self._read[1] if prompts is None else prompts)
            if change and change.step == step and prompts is not None:
                training.tell(events.PromptsChanged(step=step, prompts=change.prompts))
                for notice in prompt_notices(prompts, FAMILIES[training.plan.recognition.family].process):
                    training.tell(events.Warned(message=notice))
            self._encode(self._read[1])
        return self._read[1]

    def _take(self, step: int) -> None:
        """Take what is wanted; what cannot be read is told and forgotten. Raises OSError."""
        folder = self._training.folder
        wanted = prompt_changes.asked(folder)
        if wanted is not None and self._parsed(wanted) is None:
            folder.wanted_prompts.unlink(missing_ok=True)
        elif wanted is not None:
            prompt_changes.take(folder, step, wanted)

    def _parsed(self, text: str) -> tuple[SamplePrompt, ...] | None:
        training = self._training
        process = FAMILIES[training.plan.recognition.family].process
        sampling = training.config.sampling.model_copy(update={"sample_prompts": text})
        try:
            return read_prompts(replace(training.config, sampling=sampling), process)
        except ConfigError as error:
            for problem in error.problems:
                training.tell(events.Warned(message=f"{problem} The prompts stay as they were."))
            return None

    def _encode(self, prompts: tuple[SamplePrompt, ...]) -> None:
        """Put the prompts beside the captions, where those were encoded ahead and the text encoders freed."""
        training = self._training
        cache, bundle = training.text_cache, training.bundle
        if cache is None or training.config.network.base_weights:
            return
        drawn = bundle.latents.step, training.process.name, FAMILIES[bundle.family].guidance
        requests = [settle(prompt, training.config, index, *drawn) for index, prompt in enumerate(prompts)]
        texts = [text for request in requests for text in (request.prompt, request.negative_prompt)]
        key = bundle.text_key if training.config.text.cache_text_encoder_outputs_to_disk else ""
        missing = [text for text in texts if text not in cache]
        if missing:
            cache.fill(missing, bundle.tokenize, bundle.encode_text, key, training.progress)
            bundle.release_text_encoders()
