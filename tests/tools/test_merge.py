"""LoRAs of every kind put into checkpoints: a merged model is the model with its adapter."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.adapters import CONFIGS, Network, components, outputs, tiny_targets
from tests.helpers.checkpoints import tiny_sd15, tiny_sd15_folder
from tests.helpers.families import TINY
from trainer.__main__ import COMPLETED, FAILED, REFUSED, main
from trainer.adapters import KINDS, make_spec
from trainer.families import FAMILIES, recognise
from trainer.families.sd15.facts import FACTS
from trainer.families.unet.checkpoint import Checkpoint
from trainer.families.unet.targets import adapter_targets
from trainer.ground.commands import Command, Inbox
from trainer.results import export
from trainer.tools import TOOLS, Desk

Capture = pytest.CaptureFixture[str]

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}],
    "locon": [{}, {"use_tucker": True}, {"dora_wd": True}, {"dora_wd": True, "wd_on_output": False}],
    "loha": [{}, {"use_tucker": True}, {"dora_wd": True}],
    "lokr": [{"factor": 4}, {"full_matrix": True}, {"dora_wd": True}],
    "ia3": [{}, {"train_on_input": True}],
    "oft": [{}, {"rescaled": True}, {"constraint": 0.01}],
}
"""What gives files of a kind another form."""

CASES = [(kind, options) for kind in KINDS for options in OPTIONS.get(kind, [{}])]


def trained(kind: str, options: dict[str, Any], path: Path) -> tuple[Tensor, ...]:
    """Write a file of this kind as after training, and return what the tiny model gives with it."""
    network = Network(network_type=kind, conv_dim=3, conv_alpha=1.5)
    models = components()
    spec = make_spec(network, ("unet", "text_encoder"), SimpleNamespace(**options))
    adapter = spec.build(models, tiny_targets(), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        export.save(path, adapter.tensors(), {"ss_base_model_version": "sd_v1"}, "float")
        return tuple(outputs(models))


@torch.no_grad()
def given_by(source: Path) -> tuple[Tensor, ...]:
    """What a checkpoint's UNet and text encoder give."""
    plain = torch.device("cpu"), torch.float32, torch.float32
    checkpoint = Checkpoint(FACTS, recognise(source), "", *plain, {})
    loaded = {"unet": checkpoint.unet(), "text_encoder": checkpoint.text_encoder(FACTS.text_encoders[0])}
    return tuple(outputs(loaded))


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Tensor, ...]]:
    """The tiny checkpoint, and what it gives."""
    source = tiny_sd15(tmp_path_factory.mktemp("model"))
    return source, given_by(source)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_merged_checkpoint_is_the_model_with_its_adapter(
    tmp_path: Path, plain: tuple[Path, tuple[Tensor, ...]], kind: str, options: dict[str, Any]
) -> None:
    (source, before), lora, target = plain, tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    expected = trained(kind, options, lora)
    assert main(["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]) == COMPLETED
    for found, wanted, without in zip(given_by(target), expected, before, strict=True):
        close(found, wanted)
        assert (without - wanted).norm() > 1e-2 * wanted.norm()


def test_a_folder_is_merged_into_a_folder(tmp_path: Path) -> None:
    source, lora, target = tiny_sd15_folder(tmp_path), tmp_path / "lora.safetensors", tmp_path / "merged"
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"another form of what is merged")
    expected = trained("locon", {}, lora)
    words = ["tool", "merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]
    assert main(words) == COMPLETED
    for found, wanted in zip(given_by(target), expected, strict=True):
        close(found, wanted)
    there = {path.relative_to(source) for path in source.rglob("*")}
    assert {path.relative_to(target) for path in target.rglob("*")} == {path for path in there if path.suffix != ".bin"}
    vae = Path("vae") / "diffusion_pytorch_model.safetensors"
    assert (target / vae).read_bytes() == (source / vae).read_bytes()
    assert main(words) == REFUSED


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_number_formats_order_and_metadata_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    """Two LoRAs, one against the other; what they do not touch keeps its bytes."""
    source = tiny_sd15(tmp_path, dtype=dtype)
    trained("lora", {}, tmp_path / "a.safetensors")
    trained("loha", {}, tmp_path / "b.safetensors")
    target = tmp_path / "merged.safetensors"
    words = ["merge", "--models", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--ratios=0.5"]
    assert main([*words, "--ratios=-0.25", "--sd_model", str(source), "--save_to", str(target)]) == COMPLETED
    before, after = load_file(source), load_file(target)
    assert [(key, value.dtype) for key, value in before.items()] == [(key, value.dtype) for key, value in after.items()]
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert (
        all(key.startswith(("model.diffusion_model.", "cond_stage_model.")) for key in changed) and len(changed) > 100
    )
    with safe_open(source, "pt") as one, safe_open(target, "pt") as other:
        old, new = one.metadata(), other.metadata()
    assert json.loads(new["component_configs"]) == json.loads(old["component_configs"])
    assert new["modelspec.merged_from"] == f"{source.name}, a.safetensors, b.safetensors"
    assert (new["modelspec.title"], new["modelspec.architecture"]) == ("merged", "stable-diffusion-v1")
    assert str(tmp_path) not in json.dumps(new)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_in_their_own_layout(tmp_path: Path, family: str) -> None:
    """OpenCLIP's encoders have query, key and value in one tensor: each third gets its own."""
    tiny = TINY[family]
    source, lora, target = (
        tiny.write_file(tmp_path / "model.safetensors"),
        tmp_path / "lora",
        tmp_path / "m.safetensors",
    )
    seen = recognise(source)
    targets = FAMILIES[family].targets(seen.configs, conv=True)
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    for each in targets:
        down = torch.randn(2, each.in_features, *(each.kernel or ()), generator=generator)
        up = torch.randn(each.out_features, 2, *(1,) * len(each.kernel or ()), generator=generator)
        tensors |= {f"{each.name}.lora_down.weight": down, f"{each.name}.lora_up.weight": up * 0.05}
    lora = lora.with_suffix(".safetensors")
    save_file(tensors, lora)
    assert main(["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]) == COMPLETED
    facts = FAMILIES[family].facts
    plain = torch.device("cpu"), torch.float32, torch.float32
    old, new = (Checkpoint(facts, recognise(path), "", *plain, {}) for path in (source, target))
    modules = {"unet": (old.unet(), new.unet())}
    for encoder in facts.text_encoders:
        modules[encoder.component] = old.text_encoder(encoder), new.text_encoder(encoder)
    for each in targets:
        one, other = (module.get_submodule(each.path).weight for module in modules[each.component])
        up, down = (tensors[f"{each.name}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        close((other - one).flatten(1), up @ down)


def test_kinds_that_are_no_product_become_one_by_their_singular_values(tmp_path: Path) -> None:
    trained("lora", {}, tmp_path / "a.safetensors")
    trained("lokr", {"factor": 4}, tmp_path / "b.safetensors")
    source, target = tiny_sd15(tmp_path), tmp_path / "one.safetensors"
    words = ["merge", "--models", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--save_to"]
    assert main([*words, str(target), "--new_rank", "4096", "--save_precision", "float"]) == COMPLETED
    # At full rank the one LoRA does what both do.
    both, one = tmp_path / "both.safetensors", tmp_path / "with-one.safetensors"
    assert main([*words, str(both), "--sd_model", str(source)]) == COMPLETED
    into = ["merge", "--models", str(target), "--sd_model", str(source), "--save_to", str(one)]
    assert main(into) == COMPLETED
    for found, wanted in zip(given_by(one), given_by(both), strict=True):
        close(found, wanted)


def test_what_depends_on_weights_becomes_a_lora_with_its_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    """A DoRA, resized at full rank, does the same."""
    expected = trained("locon", {"dora_wd": True}, tmp_path / "dora.safetensors")
    source, plain, merged = tiny_sd15(tmp_path), tmp_path / "plain.safetensors", tmp_path / "merged.safetensors"
    words = ["resize", "--model", str(tmp_path / "dora.safetensors"), "--save_to", str(plain), "--new_rank", "4096"]
    assert main([*words, "--save_precision", "float"]) == REFUSED
    assert "base_model:" in capsys.readouterr().err
    assert main([*words, "--save_precision", "float", "--base_model", str(source)]) == COMPLETED
    assert main(["merge", "--models", str(plain), "--sd_model", str(source), "--save_to", str(merged)]) == COMPLETED
    for found, wanted in zip(given_by(merged), expected, strict=True):
        close(found, wanted)


def test_sum_adds_matrices_as_sd_scripts_does(tmp_path: Path, capsys: Capture) -> None:
    """up and down are each the sum of the files', times the ratio and the root of alpha's share."""
    names = [target.name for target in adapter_targets(FACTS, CONFIGS, conv=False)][:3]
    files, generator = [], torch.Generator().manual_seed(7)
    for number, alpha in enumerate((4.0, 1.0)):
        tensors = {f"{name}.alpha": torch.tensor(alpha) for name in names}
        for name in names:
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, 32, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(32, 4, generator=generator)
        files.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, files[-1])
    target = tmp_path / "sum.safetensors"
    words = ["merge", "--models", *map(str, files), "--ratios", "0.5", "2", "--save_to", str(target)]
    assert main([*words, "--method", "sum", "--save_precision", "float"]) == COMPLETED
    (one, two), found = map(load_file, files), load_file(target)
    for name in names:
        assert found[f"{name}.alpha"] == 4.0
        for part, share in (("down", 0.5), ("up", 0.5)):
            key = f"{name}.lora_{part}.weight"
            close(found[key], 0.5 * one[key] + 2 * share * two[key])


@pytest.mark.parametrize("form", ["file", "folder"])
def test_it_stops_in_the_middle_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    source = tiny_sd15(tmp_path) if form == "file" else tiny_sd15_folder(tmp_path)
    trained("lora", {}, tmp_path / "a.safetensors")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("trainer.tools.merging._MEGABYTE", 10_000)
    monkeypatch.setattr("trainer.ground.control._STAGE_SECONDS", -1.0)
    inbox, phases = Inbox(), []

    def heard(event: object) -> None:
        phases.append(event)
        if len(phases) == 5:
            # Half of it is written, beside its place.
            assert {path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")}
            inbox.send(Command.STOP)

    said: list[str] = []
    desk = Desk(said.append, said.append, lambda error: None, heard, lambda: inbox)
    words = {"models": [str(tmp_path / "a.safetensors")], "sd_model": str(source)}
    arguments = TOOLS["merge"].read({**words, "save_to": str(tmp_path / f"m{'.safetensors' * (form == 'file')}")})
    with pytest.raises(Exception, match="Stopped"):
        TOOLS["merge"].run(arguments, desk)
    assert len(phases) >= 5 and sorted(tmp_path.rglob("*")) == before and not said


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_full_disk_in_the_middle_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, form: str
) -> None:
    source = tiny_sd15(tmp_path) if form == "file" else tiny_sd15_folder(tmp_path)
    trained("lora", {}, tmp_path / "a.safetensors")
    before, there = sorted(tmp_path.rglob("*")), builtins.open

    def filling(path: Any, mode: str = "r") -> Any:
        file = there(path, mode)
        return Filling(file, 100_000) if mode == "wb" else file

    monkeypatch.setattr("trainer.tools.tensor_files.open", filling, raising=False)
    target = tmp_path / f"m{'.safetensors' * (form == 'file')}"
    words = ["merge", "--models", str(tmp_path / "a.safetensors"), "--sd_model", str(source), "--save_to", str(target)]
    assert main(words) == FAILED
    assert f"can't be written: {os.strerror(errno.ENOSPC)}." in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


class Filling:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, content: bytes) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *about: object) -> None:
        self._file.close()


@pytest.mark.skipif(os.name == "nt", reason="a process that is told to end there has no time to do anything")
def test_what_a_killed_process_left_is_removed_or_named(tmp_path: Path, capsys: Capture) -> None:
    """A tool that was killed leaves its half of a file under a name with its number; the next one clears up."""
    lora_file = tmp_path / "a.safetensors"
    trained("lora", {}, lora_file)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    target = tmp_path / "new.safetensors"
    mine, others, living = (
        tmp_path / f".{name}.safetensors.{process}.tmp"
        for name, process in (("new", gone.pid), ("other", gone.pid), ("other", os.getppid()))
    )
    for path in (mine, others, living):
        path.write_bytes(b"half")
    folder = tmp_path / f".model.{gone.pid}.tmp"
    folder.mkdir()
    words = ["resize", "--model", str(lora_file), "--save_to", str(target), "--new_rank", "2"]
    assert main(words) == COMPLETED
    printed = capsys.readouterr().err
    assert f"Note: {mine} is removed" in printed and not mine.exists()
    assert f"Note: {others} was left by a process that was killed" in printed and others.exists()
    assert f"Note: {folder} was left" in printed and living.name not in printed


def wrong_files(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and one of SDXL, and beside them files that go with neither."""
    source, lora = tiny_sd15(tmp_path), tmp_path / "a.safetensors"
    trained("lora", {}, lora)
    trained("locon", {"dora_wd": True}, tmp_path / "dora.safetensors")
    xl = TINY["sdxl"].write_file(tmp_path / "xl.safetensors")
    tensors = load_file(lora)
    save_file({f"x{key}": value for key, value in tensors.items()}, tmp_path / "strange.safetensors")
    some = dict(list(tensors.items())[:6])
    stranger = {key.replace("_layers_0", "_layers_77"): value.clone() for key, value in some.items()}
    save_file({**tensors, **stranger}, tmp_path / "more.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(source.read_bytes()[:-100])
    (tmp_path / "link.safetensors").symlink_to(source)
    scaled = {**load_file(source), "model.diffusion_model.scaled_fp8": torch.zeros(2)}
    save_file(scaled, tmp_path / "scaled.safetensors")
    torch.save({"state_dict": load_file(source)}, tmp_path / "pickle.ckpt")
    (tmp_path / "kept.safetensors").write_bytes(b"kept")
    (tmp_path / "kept.safetensors").chmod(0o444)
    return source, xl


def test_ten_wrong_combinations(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, which begins with the argument; nothing is written."""
    source, xl = wrong_files(tmp_path)

    def there() -> dict[str, int]:
        return {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}

    before = there()

    def merge(model: str, into: str, to: str = "new.safetensors", *more: str) -> list[str]:
        words = ["merge", "--models", *(str(tmp_path / name) for name in model.split())]
        return [*words, "--sd_model", str(tmp_path / into), "--save_to", str(tmp_path / to), *more]

    def full(path: object) -> SimpleNamespace:
        return SimpleNamespace(free=1000)

    cases: list[tuple[list[str], str, Callable[[], None] | None]] = [
        (merge("a.safetensors", xl.name), "sd_model: ", None),
        (merge("a.safetensors", "a.safetensors"), "sd_model: ", None),
        (merge(source.name, source.name), "models: ", None),
        (merge("torn.safetensors", source.name), "models: ", None),
        (merge("a.safetensors", "torn.safetensors"), "sd_model: ", None),
        (merge("a.safetensors a.safetensors", source.name), "models: a.safetensors is named twice", None),
        (merge("a.safetensors", source.name, "link.safetensors", "--overwrite"), "save_to: ", None),
        (merge("a.safetensors", source.name, "gone/new.safetensors"), "save_to: ", None),
        (merge("more.safetensors", source.name), "sd_model: ", None),
        (merge("strange.safetensors", source.name), "sd_model: ", None),
        (merge("a.safetensors", "pickle.ckpt"), "sd_model: ", None),
        (merge("a.safetensors", "no such model"), "sd_model: ", None),
        (merge("a.safetensors", "scaled.safetensors"), "sd_model: scaled.safetensors stores its weights in few", None),
        (merge("a.safetensors", source.name, "a.safetensors/new.safetensors"), "save_to: ", None),
        (merge("a.safetensors", source.name, "new.safetensors", "--new_rank", "4"), "new_rank: ", None),
        (merge("a.safetensors", source.name, "new.safetensors", "--clamp_quantile", "0.9"), "clamp_quantile: ", None),
        (merge("a.safetensors", source.name, "new.ckpt"), "save_to: ", None),
        (merge("a.safetensors", source.name, "kept.safetensors", "--overwrite"), "save_to: ", None),
        (
            [*merge("a.safetensors dora.safetensors", "")[:-4], "--save_to", str(tmp_path / "n.safetensors")],
            "models: ",
            None,
        ),
        (
            merge("a.safetensors", source.name),
            "save_to: ",
            lambda: monkeypatch.setattr("trainer.tools.asking.shutil.disk_usage", full),
        ),
    ]
    for words, begins, prepare in cases:
        if prepare:
            prepare()
        capsys.readouterr()
        assert main(words) == REFUSED, words
        printed = capsys.readouterr().err
        assert printed.startswith(begins) and printed.count("\n") == 1, printed
        assert there() == before


def test_one_layer_has_one_name(tmp_path: Path) -> None:
    """Files for SDXL name a layer as the original layout does, or as diffusers does: it is one layer of the merge."""
    layers = [each for each in FAMILIES["sdxl"].targets(FAMILIES["sdxl"].configs, conv=False) if each.alias][:2]
    files, generator = [], torch.Generator().manual_seed(8)
    for kind in ("name", "alias"):
        tensors = {}
        for each in layers:
            key = getattr(each, kind)
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, each.in_features, generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(each.out_features, 2, generator=generator)
        files.append(tmp_path / f"{kind}.safetensors")
        save_file(tensors, files[-1], metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    target = tmp_path / "both.safetensors"
    words = ["merge", "--models", *map(str, files), "--save_to", str(target), "--save_precision", "float"]
    assert main(words) == COMPLETED
    found, (one, two) = load_file(target), map(load_file, files)
    assert {key.partition(".")[0] for key in found} == {each.name for each in layers}
    for each in layers:
        up, down = (found[f"{each.name}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        wanted = [
            tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
            for tensors, key in ((one, each.name), (two, each.alias))
        ]
        close(up @ down, wanted[0] + wanted[1])
