"""What is left of the demo in settings for a real model: its folders, its prompts, its small samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig, load_config, to_flat
from trainer.config.files import PRESETS, PROJECT

DEMO = PROJECT / "demo"
_SIZE = re.compile(r"--[wh]\s+(\d+)")


@cache
def demo_settings() -> Mapping[str, object]:
    """Return the values of the demo's preset."""
    return to_flat(load_config(None, preset=PRESETS / "demo.toml"))


def is_of_the_demo(path: str) -> bool:
    """Say whether a path leads into the demo's folder. Nothing is opened."""
    return bool(path) and DEMO in (Path.cwd() / path, *(Path.cwd() / path).parents)


class DemoFolders(Rule):
    name = "demo-folders"
    key = "train_data_dir"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if known.trial or not known.model_side:
            return
        folders = {
            "train_data_dir": (config.dataset.train_data_dir, "pictures"),
            "reg_data_dir": (config.dataset.reg_data_dir, "regularisation pictures"),
        }
        for key, (path, what) in folders.items():
            if is_of_the_demo(path):
                yield self.advice(
                    f"the {what} are still the demo's.",
                    "They are tiny drawings of an emblem; a real model only learns to draw worse from them.",
                    {"reg_data_dir": ""} if key == "reg_data_dir" else None,
                    key=key,
                    serious=True,
                )


class DemoPrompts(Rule):
    name = "demo-prompts"
    key = "sample_prompts"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        demo = str(demo_settings()["sample_prompts"]).strip()
        if not known.trial and known.model_side and config.sampling.sample_prompts.strip() == demo:
            yield self.advice(
                "the prompts are still the demo's.",
                "They ask for an emblem of 64 pixels. Write your own, with your trigger word in them.",
                {"sample_prompts": ""},
                serious=True,
            )


class SampleSize(Rule):
    name = "sample-size"
    key = "sample_prompts"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        sides = [int(side) for side in _SIZE.findall(config.sampling.sample_prompts)]
        smallest = min(sides, default=0)
        if known.trial or not 0 < smallest < known.model_side / 3:
            return
        yield self.advice(
            f"a sample is to have a side of {smallest} pixels; the model was made for {known.model_side}.",
            "It draws noise or patterns at such sizes, so the sample says nothing about the LoRA.",
        )


RULES: tuple[Rule, ...] = (DemoFolders(), DemoPrompts(), SampleSize())
