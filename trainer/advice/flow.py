"""Advice on models that draw by rectified flow, such as FLUX.1."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.advice.parts import text_rates
from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig
from trainer.families import FAMILIES
from trainer.process import FLOW


def is_flow(known: Situation) -> bool:
    """Say whether the model is known and draws by rectified flow."""
    return known.model_family in FAMILIES and FAMILIES[known.model_family].process is FLOW


class Prediction(Rule):
    name = "flow-prediction"
    key = "model_prediction_type"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        chosen = config.flow.model_prediction_type
        if is_flow(known) and chosen != "raw":
            reason = (
                "The target is noise minus picture, which is what the model gives; what this makes of it is far from "
                "the target, so the LoRA learns to undo it, or nothing."
            )
            yield self.advice(f'"{chosen}" is trained.', reason, {"model_prediction_type": "raw"})


class Distilled(Rule):
    name = "distilled-model"
    key = "pretrained_model_name_or_path"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if is_flow(known) and known.model_variant == "schnell":
            reason = (
                "Training on it takes that away bit by bit. Train on dev, whose LoRAs work on schnell too, or keep the "
                "run short."
            )
            yield self.advice("schnell was taught to draw in four steps.", reason)


class MaskedPadding(Rule):
    name = "masked-padding"
    key = "apply_t5_attn_mask"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if known.model_family == "flux" and config.model.apply_t5_attn_mask:
            reason = "FLUX.1 was trained without a mask, and every program that draws with it shows it the padding."
            yield self.advice("the padding of captions is masked.", reason, {"apply_t5_attn_mask": False})


class GuidanceInTraining(Rule):
    name = "guidance-in-training"
    key = "guidance_scale"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if is_flow(known) and known.model_variant == "dev" and config.flow.guidance_scale > 2:
            reason = "The model then learns pictures as they look at that guidance; 1 is what recipes for dev take."
            message = f"the model is told a guidance of {config.flow.guidance_scale:g}."
            yield self.advice(message, reason, {"guidance_scale": 1.0})


class TextEncodedAhead(Rule):
    name = "text-encoded-ahead"
    key = "cache_text_encoder_outputs"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        ahead = config.text.cache_text_encoder_outputs or config.text.cache_text_encoder_outputs_to_disk
        stay = config.network.base_weights  # loaded again they would lack what was merged into them
        if is_flow(known) and not ahead and not stay and not text_rates(config, known.model_family):
            reason = "The text encoders then leave memory before the first step; T5 XXL takes ten gigabytes of it."
            message = "captions are encoded while training, and no text encoder learns."
            yield self.advice(message, reason, {"cache_text_encoder_outputs": True})
