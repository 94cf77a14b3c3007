"""Pictures described in sentences by a model of transformers: BLIP, Florence-2, the Qwen-VL and LLaVA kinds.

The model's own processor prepares a picture, its chat template the question where it has one. Only safetensors are
loaded, and no program that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.families.reading.hub import snapshot
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.workbench.captioners import CaptionerSettings

if TYPE_CHECKING:
    from PIL import Image

_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
QUESTION = "Describe this picture."
TASK = "<MORE_DETAILED_CAPTION>"
"""What models that are asked are asked, and the task of Florence-2, where no prompt is given."""
_LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class DescriberSettings(CaptionerSettings):
    """A describing model: `model` is a folder as transformers saves them, or a name on the hub.

    `prompt` is the question to a model that is asked (QUESTION if empty), the task of Florence-2 (TASK), or the
    beginning of BLIP's sentence. Of the answer at most `max_new_tokens` are written.
    """

    model: str
    prompt: str = ""
    max_new_tokens: int = 128
    device: str = "auto"
    precision: str = "auto"
    title = "the describing model"

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.max_new_tokens <= 4096:
            words = f"is {self.max_new_tokens}; it must be from 1 to 4096."
            problems.append(Problem("max_new_tokens", words, self.max_new_tokens))
        if self.precision not in PRECISIONS:
            problems.append(
                Problem("precision", f"is {self.precision!r}; choose {', '.join(PRECISIONS)}.", self.precision)
            )
        if len(self.prompt) > _LONGEST_PROMPT:
            problems.append(Problem("prompt", f"has {len(self.prompt)} characters; {_LONGEST_PROMPT} are the most."))
        if problems:
            raise ConfigError(problems)

    def missing_extra(self) -> str:
        return ""

    def load(self, device: str, progress: Progress | None = None) -> Describer:
        """Load the model and its processor, and from the hub where they are not here."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = Path(self.model)
        if not folder.is_dir():
            folder = snapshot(self.model, _FILES, progress)
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        usual = "bf16" if device == "cuda" else "fp32"
        precision = kinds[usual if self.precision == "auto" or device == "cpu" else self.precision]
        plain: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(folder, **plain)
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=precision, use_safetensors=True, **plain)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:400]
            remedy = "Choose a folder or hub name with config.json, its processor's files and safetensors."
            if not find_spec("torchvision") and isinstance(error, ImportError | AttributeError):
                remedy = "Models such as Qwen-VL need the package torchvision, in the build that suits PyTorch's."
            raise ModelError(
                f"{self.model} cannot be loaded as a model that describes pictures: {reason}", remedy
            ) from error
        return Describer(self, model.to(device).eval(), processor)


class Describer:
    """A loaded describing model."""

    batch = 1

    def __init__(self, settings: DescriberSettings, model: Any, processor: Any) -> None:
        self._settings, self._model, self._processor = settings, model, processor

    def texts(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a description of each picture, in one line."""
        return [self._text(image) for image in images]

    def _text(self, image: Image.Image) -> str:
        try:
            given = self._given(image).to(self._model.device)
            for name, value in given.items():
                if value.is_floating_point():
                    given[name] = value.to(self._model.dtype)
            written = self._model.generate(
                **given, max_new_tokens=self._settings.max_new_tokens, do_sample=False, num_beams=1
            )
        except (RuntimeError, ValueError, TypeError, LookupError, ImportError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ModelError(
                f"{self._settings.model} cannot describe a picture: {reason}",
                "Try another prompt, precision or device, or another model.",
            ) from error
        if not self._model.config.is_encoder_decoder and self._is_asked:
            written = written[:, given["input_ids"].shape[1] :]
        (text,) = self._processor.batch_decode(written, skip_special_tokens=True)
        return " ".join(text.split())

    @property
    def _is_asked(self) -> bool:
        """Whether the model answers a question in a conversation."""
        return bool(getattr(self._processor, "chat_template", None))

    def _given(self, image: Image.Image) -> Any:
        """Return what the processor makes of a picture and the prompt."""
        prompt = self._settings.prompt
        if not prompt and hasattr(self._processor, "post_process_generation"):
            prompt = TASK
        if not self._is_asked:
            return self._processor(images=image, **({"text": prompt} if prompt else {}), return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": prompt or QUESTION}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self._processor(images=image, text=text, return_tensors="pt")
