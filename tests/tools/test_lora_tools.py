"""The tools around LoRA files, through the command line, held to formulas on whole matrices."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.checkpoints import tiny_sd15
from trainer.__main__ import COMPLETED, FAILED, REFUSED, main
from trainer.results.export import hashes
from trainer.tools import low_rank, resize

Capture = pytest.CaptureFixture[str]

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
OTHER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
CONV = "lora_unet_mid_block_resnets_0_conv1"
SHAPES = {LINEAR: ((24,), 20), OTHER: ((24,), 20), CONV: ((8, 3, 3), 20)}
RANK, ALPHA = 12, 6.0


def module(name: str, rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    """A module with singular values of its product that halve from one to the next."""
    (inner, out), generator = SHAPES[name], torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(out, rank, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(math.prod(inner), rank, generator=generator, dtype=torch.float64))
    s = 2.0 ** -torch.arange(rank, dtype=torch.float64)
    # Turned, so that neither factor shows the values by itself.
    turn, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
    kernel = (1,) * (len(inner) - 1)
    return {
        f"{name}.alpha": torch.tensor(alpha),
        f"{name}.lora_down.weight": (turn.T @ v.T).reshape(rank, *inner).float().contiguous(),
        f"{name}.lora_up.weight": (u * s @ turn).reshape(out, rank, *kernel).float().contiguous(),
    }


def write(
    path: Path, rank: int = RANK, alpha: float = ALPHA, seed: int = 0, names: tuple[str, ...] = tuple(SHAPES)
) -> Path:
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        tensors |= module(name, rank, alpha, seed + index)
    said = {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha), "ss_base_model_version": "sd_v1"}
    save_file(tensors, path, metadata={**said, "ss_training_comment": "mine", "sshs_model_hash": "old"})
    return path


def difference(tensors: dict[str, Tensor], name: str) -> Tensor:
    """alpha / rank * up @ down, the whole matrix in float64."""
    up, down = (tensors[f"{name}.lora_{part}.weight"].flatten(1).double() for part in ("up", "down"))
    return tensors[f"{name}.alpha"].double() / down.shape[0] * up @ down


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rank_of(tensors: dict[str, Tensor], name: str) -> int:
    return tensors[f"{name}.lora_down.weight"].shape[0]


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 1e-4 * expected.norm()


# How many of the values 1, 1/2, 1/4, ... are kept, by hand: sums are 2 - 2^(1-k), sums of squares 4/3 (1 - 4^-k). One
# more than a dynamic method asks for, as sd-scripts does.
@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--new_rank", "4"], 4),
        (["--new_rank", "40"], RANK),
        (["--new_rank", "40", "--dynamic_method", "sv_ratio", "--dynamic_param", "10"], 5),
        (["--new_rank", "2", "--dynamic_method", "sv_ratio", "--dynamic_param", "10"], 2),
        (["--new_rank", "40", "--dynamic_method", "sv_cumulative", "--dynamic_param", "0.9"], 5),
        (["--new_rank", "40", "--dynamic_method", "sv_fro", "--dynamic_param", "0.9"], 3),
    ],
)
def test_resizing_keeps_the_largest_singular_values(tmp_path: Path, words: list[str], kept: int) -> None:
    source, target = write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert main(["resize", "--model", str(source), "--save_to", str(target), "--save_precision", "float", *words]) == 0
    before, after = load_file(source), load_file(target)
    assert list(after) == list(before)
    for name in SHAPES:
        u, s, v = torch.linalg.svd(difference(before, name), full_matrices=False)
        assert rank_of(after, name) == kept
        close(difference(after, name), (u[:, :kept] * s[:kept]) @ v[:kept])
        assert after[f"{name}.alpha"].item() == pytest.approx(ALPHA / RANK * kept)
        for part in ("up", "down"):
            shape = before[f"{name}.lora_{part}.weight"].shape
            assert after[f"{name}.lora_{part}.weight"].shape == tuple(kept if side == RANK else side for side in shape)
    said = metadata(target)
    dynamic = "--dynamic_method" in words
    assert said["ss_network_dim"] == str(kept)
    assert said["ss_training_comment"].startswith("Dynamic resize with " if dynamic else "dimension is resized from 12")
    assert said["ss_training_comment"].endswith("; mine")
    content = target.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert said["sshs_model_hash"] == hashes({}, {}, memoryview(content)[start:])["sshs_model_hash"]


def test_the_methods_are_those_that_there_is_arithmetic_for() -> None:
    assert tuple(low_rank.METHODS) == resize.METHODS


def test_convolutions_may_have_a_rank_of_their_own(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    words = ["resize", "--model", str(source), "--save_to", str(target), "--new_rank", "6", "--new_conv_rank", "2"]
    assert main(words) == COMPLETED
    after = load_file(target)
    assert (rank_of(after, LINEAR), rank_of(after, CONV)) == (6, 2)
    assert after[f"{CONV}.lora_up.weight"].dtype == torch.float16
    assert metadata(target)["ss_network_dim"] == "Dynamic"


def test_a_module_that_holds_nothing_gets_rank_one(tmp_path: Path) -> None:
    tensors = module(LINEAR, 4, 4.0, 0)
    tensors[f"{LINEAR}.lora_up.weight"].zero_()
    save_file(tensors, tmp_path / "a.safetensors")
    words = ["--model", str(tmp_path / "a.safetensors"), "--save_to", str(tmp_path / "b.safetensors")]
    assert main(["resize", *words, "--new_rank", "3"]) == COMPLETED
    assert rank_of(load_file(tmp_path / "b.safetensors"), LINEAR) == 1


@pytest.mark.parametrize("new_rank", [None, 5])
def test_a_merge_does_what_all_do_together(tmp_path: Path, new_rank: int | None) -> None:
    """Of different ranks, alphas and layers, one with a negative ratio."""
    sources = [
        write(tmp_path / "a.safetensors", 4, 2.0, seed=1),
        write(tmp_path / "b.safetensors", 8, 8.0, seed=5, names=(LINEAR, CONV)),
        write(tmp_path / "c.safetensors", 3, 1.0, seed=9, names=(OTHER,)),
    ]
    ratios, target = (0.5, -0.75, 2.0), tmp_path / "merged.safetensors"
    words = ["merge", "--models", *map(str, sources), f"--ratios={ratios[0]}", f"--ratios={ratios[1]}"]
    words += [f"--ratios={ratios[2]}", "--save_to", str(target), "--save_precision", "float"]
    assert main([*words, *(["--new_rank", str(new_rank)] if new_rank else [])]) == COMPLETED
    loaded, merged = [load_file(source) for source in sources], load_file(target)
    for name in SHAPES:
        expected = sum(
            (
                ratio * difference(tensors, name)
                for tensors, ratio in zip(loaded, ratios, strict=True)
                if f"{name}.alpha" in tensors
            ),
            torch.zeros(()),
        )
        if new_rank:
            u, s, v = torch.linalg.svd(expected, full_matrices=False)
            expected = (u[:, :new_rank] * s[:new_rank]) @ v[:new_rank]
            assert rank_of(merged, name) == new_rank
        close(difference(merged, name), expected)
    said = metadata(target)
    assert said["ss_base_model_version"] == "sd_v1"
    assert said["modelspec.merged_from"] == "a.safetensors, b.safetensors, c.safetensors"
    assert said["ss_training_comment"] == ("merged from a.safetensors x 0.5, b.safetensors x -0.75, c.safetensors x 2")


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, capsys: Capture) -> None:
    good, second = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", seed=3)
    model = tiny_sd15(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(good.read_bytes()[:-100])
    tensors = load_file(good)
    sdxl = {"ss_base_model_version": "sdxl_base_v1-0"}
    save_file(tensors, tmp_path / "xl.safetensors", metadata=sdxl)
    save_file({**tensors, f"{LINEAR}.dora_scale": torch.ones(20, 1)}, tmp_path / "dora.safetensors")
    wide = {
        key: torch.zeros(RANK, 48) if key == f"{LINEAR}.lora_down.weight" else value for key, value in tensors.items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    tensors[f"{LINEAR}.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    (tmp_path / "link.safetensors").symlink_to(good)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def merge(*models: str, to: str = "new.safetensors", more: tuple[str, ...] = ()) -> list[str]:
        return ["merge", "--models", *(str(tmp_path / name) for name in models), "--save_to", str(tmp_path / to), *more]

    def smaller(name: str, *more: str, to: str = "new.safetensors") -> list[str]:
        return ["resize", "--model", str(tmp_path / name), "--save_to", str(tmp_path / to), "--new_rank", "4", *more]

    for words, said in (
        (merge("a.safetensors", "xl.safetensors"), "for different kinds of models"),
        (merge("a.safetensors", "wide.safetensors"), "has another shape"),
        (merge("a.safetensors", "link.safetensors"), "is named twice"),
        (merge("a.safetensors", model.name), "models: "),
        (merge("a.safetensors", "torn.safetensors"), "torn.safetensors"),
        (merge("a.safetensors", "nan.safetensors"), "not finite"),
        (merge("a.safetensors", "gone.safetensors"), "gone.safetensors"),
        (merge("a.safetensors"), "models: names one file"),
        (merge("a.safetensors", second.name, more=("--ratios", "1")), "ratios: there are 1 for 2"),
        (merge("a.safetensors", second.name, to="a.safetensors"), "this is what is read from"),
        (
            merge("a.safetensors", second.name, to="link.safetensors", more=("--overwrite",)),
            "this is what is read from",
        ),
        (merge("a.safetensors", second.name, to="nowhere/new.safetensors"), "nothing can be written there"),
        (merge("a.safetensors", second.name, to="xl.safetensors"), "something is there already"),
        (smaller("dora.safetensors"), "base_model: "),
        (smaller(model.name), "model: "),
        (smaller("a.safetensors", to="new.pt"), "must end in .safetensors"),
        (smaller("a.safetensors", "--dynamic_method", "sv_fro"), "dynamic_param: goes together"),
        (smaller("a.safetensors", "--dynamic_method", "sv_fro", "--dynamic_param", "2"), "at most 1"),
        (smaller("a.safetensors", "--dynamic_method", "sv_ratio", "--dynamic_param", "1"), "2 or more"),
        (smaller("a.safetensors", "--dynamic_method", "sv_frob", "--dynamic_param", "1"), 'did you mean "sv_fro"'),
    ):
        capsys.readouterr()
        assert main(words) == REFUSED, words
        printed = capsys.readouterr().err
        assert said in printed and "Traceback" not in printed, printed
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main(merge("a.safetensors", second.name, to="xl.safetensors", more=("--overwrite",))) == COMPLETED


def test_verifying_shows_norms_by_block_and_finds_faults(tmp_path: Path, capsys: Capture) -> None:
    """The norms of the planted values: each layer's is alpha / rank times the root of 4/3 (1 - 4^-rank)."""
    source = write(tmp_path / "a.safetensors", names=(LINEAR, OTHER))
    capsys.readouterr()
    assert main(["verify", str(source)]) == COMPLETED
    printed = capsys.readouterr().out
    assert "a.safetensors: a LoRA for Stable Diffusion 1.x, 2 layers, rank 12" in printed
    layer = ALPHA / RANK * math.sqrt(4 / 3 * (1 - 4.0**-RANK))
    assert f"unet mid_block  {math.sqrt(2) * layer:10.4f}  {'#' * 30}" in printed
    assert "No fault found." in printed

    tensors = load_file(source)
    tensors[f"{OTHER}.lora_up.weight"].zero_()
    said = {"ss_base_model_version": "sd_v1"}
    save_file(tensors, tmp_path / "still.safetensors", metadata=said)
    assert main(["verify", str(tmp_path / "still.safetensors")]) == COMPLETED
    printed = capsys.readouterr().out
    assert f"unet mid_block  {layer:10.4f}" in printed
    assert f"Layers that do nothing, as one of their matrices is 0: {OTHER}" in printed

    tensors |= {key.replace("mid_block", "side_block"): value for key, value in module(LINEAR, 2, 1.0, 3).items()}
    tensors[f"{OTHER}.lora_down.weight"][0, 0] = float("inf")
    save_file(tensors, tmp_path / "bad.safetensors", metadata=said)
    assert main(["verify", str(tmp_path / "bad.safetensors")]) == FAILED
    printed = capsys.readouterr().out
    assert f"Fault: numbers that are not finite: {OTHER}.lora_down.weight" in printed
    assert f"layers that Stable Diffusion 1.x does not have: {LINEAR.replace('mid_block', 'side_block')}" in printed


def test_verifying_refuses_what_is_no_lora(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_sd15(tmp_path)
    assert main(["verify", str(model)]) == REFUSED
    assert "a checkpoint, not a LoRA" in capsys.readouterr().err
