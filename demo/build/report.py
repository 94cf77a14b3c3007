"""The demo's figures and sheets: the base model's against the judge, and LoRAs trained by this project itself."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from demo.build import dataset, lora
from demo.build.autoencoder import peak_signal_to_noise
from demo.build.concept import DEMO, concept_scenes
from demo.build.drawing import caption, draw, random_scene
from demo.build.judge import judge_drawings, judge_model, read_judge
from demo.build.sampling import round_trip, sample, save_sheet
from demo.build.shapes import SUBJECTS

LOGGER = logging.getLogger(__name__)
MODEL_FILE = DEMO / "model.safetensors"
PRESET = DEMO.parent / "presets" / "demo.toml"
FIGURES = DEMO / "figures.json"
README = DEMO / "README.md"
BEGIN, END = "<!-- figures.json as tables: python -m demo.build tables -->", "<!-- end of the tables -->"
SHEETS = DEMO / "sheets"
SEEDS = (1, 2, 3, 4, 5, 6)
"""The preset was chosen by what the first three gave; the others are judged with it as it stands."""
SHEET_COLUMNS = 12


def note(name: str, value: object) -> None:
    """Keeps one figure in demo/figures.json and logs it."""
    known = noted() if FIGURES.exists() else {}
    known[name] = value
    FIGURES.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    LOGGER.info("%s: %s", name, value)


def noted(path: Path = FIGURES) -> dict[str, Any]:
    """The figures that were kept."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"


def tables(figures: dict[str, Any]) -> str:
    """The figures as README.md shows them: the base model's, then the LoRAs'."""
    lines = ["| | shapes | object's colour | background |", "|---|---|---|---|"]
    for name in ("real drawings, as captioned", "real drawings, captions shuffled"):
        lines.append(_row(name, *map(_per_cent, figures[name].values())))
    for name in ("model, as captioned", "model, captions shuffled"):
        lines.append(_row(name.replace("model", "the model's samples"), *map(_per_cent, figures[name].values())))
    lines += ["", f"The VAE's round trip: {figures['VAE, dB on held-out pictures']:.1f} dB on held-out pictures.", ""]
    heads = (
        "",
        'marks with "sks"',
        "without",
        'score with "sks"',
        "over .7",
        "without",
        "concept loss",
        "old captions",
    )
    before = figures["LoRA, before"]
    lines += [_row(*heads), "|---" * len(heads) + "|"]
    for name, found in figures.items():
        if not name.startswith("LoRA, "):
            continue
        grown = [f"{found[key]:.4f} ({found[key] / before[key] - 1:+.1%})" for key in ("concept_loss", "prior_loss")]
        shares = [_per_cent(found[key]) for key in ("marks", "marks_without")]
        scores = [f"{found['with_trigger']:.3f}", _per_cent(found["hits"]), f"{found['without_trigger']:.3f}"]
        lines.append(_row(name.removeprefix("LoRA, "), *shares, *scores, *grown))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def write_tables() -> None:
    """Puts the figures into README.md, between their two marks."""
    words = README.read_text(encoding="utf-8")
    head, rest = words.split(BEGIN)
    tail = rest.split(END)[1]
    README.write_text(f"{head}{BEGIN}\n\n{tables(noted())}\n\n{END}{tail}", encoding="utf-8")


def judge_base() -> None:
    """The judge on real drawings, then the base model's samples before the judge."""
    judge = read_judge()
    model = lora.load_model(MODEL_FILE)
    for name, (asked, mixed) in {"real drawings": judge_drawings(judge), "model": judge_model(judge, model)}.items():
        note(f"{name}, as captioned", _rounded(asked))
        note(f"{name}, captions shuffled", _rounded(mixed))
    pixels = dataset.as_pixels(dataset.read("held_out").pictures)
    note("VAE, dB on held-out pictures", round(peak_signal_to_noise(model.vae, pixels), 2))


def _rounded(figures: object) -> dict[str, float]:
    assert dataclasses.is_dataclass(figures) and not isinstance(figures, type)
    return {name: round(value, 4) for name, value in dataclasses.asdict(figures).items()}


def write_sheets() -> None:
    """Samples of the base model, the VAE's round trip and the concept's pictures, as small PNG files."""
    model, draws = lora.load_model(MODEL_FILE), random.Random("sheet")
    subjects = [*SUBJECTS] * 3 + ["emblem"] * SHEET_COLUMNS
    scenes = [random_scene(draws, subject=subject) for subject in subjects]
    words = [caption(scene) for scene in scenes]
    pictures = np.concatenate([sample(model, words[start : start + 12], seed=start) for start in range(0, 48, 12)])
    save_sheet(SHEETS / "model.png", list(pictures), SHEET_COLUMNS)
    (SHEETS / "model.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    originals = np.stack([np.asarray(draw(scene)) for scene in scenes[-24:]])
    back = round_trip(model.vae, dataset.as_pixels(originals))
    rows = [picture for start in (0, 12) for part in (originals, back) for picture in part[start : start + 12]]
    save_sheet(SHEETS / "vae.png", rows, SHEET_COLUMNS)
    save_sheet(SHEETS / "concept.png", [np.asarray(draw(scene)) for scene, _ in concept_scenes()], SHEET_COLUMNS)


def train_lora(seed: int, folder: Path) -> Path:
    """Trains the demo preset through the command line, unless this model's LoRA of this seed is there already."""
    path = folder / f"seed{seed}.safetensors"
    if path.exists() and path.stat().st_mtime > MODEL_FILE.stat().st_mtime:
        return path
    given = [f"seed={seed}", f"output_dir={folder}", f"output_name={path.stem}", "sample_at_first=false"]
    options = [part for setting in [*given, "sample_prompts="] for part in ("--set", setting)]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "trainer", "train", str(PRESET), "--overwrite", *options], check=True, cwd=DEMO.parent
    )
    LOGGER.info("seed %d trained in %.0f s", seed, time.monotonic() - started)
    return path


def judge_loras() -> None:
    """Trains one LoRA for each seed and writes what it has learnt; sheet of the first."""
    before = lora.load_model(MODEL_FILE)
    note("LoRA, before", _rounded(lora.figures(before)))
    for seed in SEEDS:
        after = lora.load_model(MODEL_FILE, train_lora(seed, dataset.WORK / "loras"))
        note(f"LoRA, seed {seed}", _rounded(lora.figures(after)))
        if seed == SEEDS[0]:
            save_sheet(SHEETS / "lora.png", lora.comparison(before, after), len(lora.PROMPTS))
