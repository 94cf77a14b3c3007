"""Weights in captions, against what sd-scripts makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.families import TINY
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.config import load_config
from trainer.families.text.clip import PromptTokenizer, clip_tokenizer
from trainer.families.text.weighted import WeightedTokenizer, parse_weights
from trainer.families.unet.bundle import StableBundle

CASES = json.loads((Path(__file__).parents[1] / "data" / "weighted_captions.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"])
def test_ids_and_weights_are_those_of_sd_scripts(case: dict) -> None:
    """The recorded rows end with their first end token; what follows is padding of weight 1."""
    tokens = WeightedTokenizer(PromptTokenizer(clip_tokenizer(), 1))(case["caption"])
    rest = 77 - len(case["ids"])
    assert tokens["ids"].tolist() == [case["ids"] + [49407] * rest]
    assert tokens["weights"][0].tolist() == pytest.approx(case["weights"] + [1.0] * rest, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("", []),
        ("plain, text", [("plain, text", 1.0)]),
        ("a: b)", [("a: b)", 1.0)]),
        ("(a:2)", [("a", 2.0)]),
        ("((a:2) b)", [("a", 2.2), (" b", 1.1)]),
        ("[a (b]", [("a ", 1 / 1.1), ("b", 1.0)]),
        (r"\(a\) \\", [(r"(a) " + "\\", 1.0)]),
    ],
)
def test_runs(text: str, runs: list[tuple[str, float]]) -> None:
    made = parse_weights(text)
    assert [run for run, _ in made] == [run for run, _ in runs]
    assert [weight for _, weight in made] == pytest.approx([weight for _, weight in runs])


def test_long_prompts_keep_every_weight_with_its_token() -> None:
    tokens = WeightedTokenizer(PromptTokenizer(clip_tokenizer(), 2, 0))("cat " * 70 + "(dog:1.5) " * 10)
    plain = PromptTokenizer(clip_tokenizer(), 2, 0)("cat " * 70 + "dog " * 10)
    assert torch.equal(tokens["ids"], plain["ids"])
    dog = clip_tokenizer()("dog", add_special_tokens=False)["input_ids"][0]
    assert torch.equal(tokens["weights"] == 1.5, tokens["ids"] == dog)


@pytest.mark.parametrize("family", sorted(TINY))
def test_states_are_multiplied_and_the_pooled_prompt_is_not(family: str, tmp_path: Path) -> None:
    path = TINY[family].write_file(tmp_path / "tiny.safetensors")
    made = []
    for weighted, text in ((False, "a red cat"), (True, "a (red:1.5) cat"), (True, "a red cat")):
        config = load_config(
            overrides={
                "pretrained_model_name_or_path": str(path),
                "weighted_captions": weighted,
                "max_token_length": 150,
            }
        )
        bundle = families.load(config, device=torch.device("cpu"), dtype=torch.float32)
        assert isinstance(bundle, StableBundle)
        made.append(bundle.encode_text(tokens_of(bundle, text)))
    plain, weighted_text, unweighted = made
    factor = torch.ones(1, 152, 1)
    factor[:, 2] = 1.5
    torch.testing.assert_close(weighted_text["context"], plain["context"] * factor)
    assert all(torch.equal(plain[name], unweighted[name]) for name in plain)
    if "pooled" in plain:
        assert torch.equal(plain["pooled"], weighted_text["pooled"])
