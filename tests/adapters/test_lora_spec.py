"""What a LoRA looks like before it exists: ranks, alphas, keys, shapes, size, and what a file says of itself."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.adapters import Network, target_named, tiny_targets
from trainer import adapters
from trainer.adapters import LoraSpec, make_spec, read_header
from trainer.families.sd15 import facts
from trainer.families.unet.targets import adapter_targets
from trainer.ground.errors import ModelError

BOTH = ("unet", "text_encoder")
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
POINT = "lora_unet_mid_block_attentions_0_proj_in"
SQUARE = "lora_unet_mid_block_resnets_0_conv1"
TIME = "lora_unet_mid_block_resnets_0_time_emb_proj"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def file_with(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "some.safetensors"
    save_file(tensors, path, metadata)
    return path


def module(name: str, rank: int, alpha: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    target = target_named(name)
    shapes = LoraSpec(rank, rank, conv_dim=rank, conv_alpha=rank).shapes([target])
    tensors = {key: torch.ones(shape) for key, shape in shapes.items() if shape}
    return tensors if alpha is None else {f"{name}.alpha": alpha, **tensors}


def test_keys_and_shapes_of_rank_8_are_kohyas_in_creation_order() -> None:
    known = json.loads((Path(__file__).parents[1] / "data" / "lora_keys_sd15.json").read_text(encoding="utf-8"))
    expected: dict[str, list[int]] = {}
    for name, down, up in known["modules"]:
        expected |= {f"{name}.alpha": [], f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    targets = adapter_targets(facts.FACTS, facts.FACTS.configs, conv=True)
    found = adapters.keys(targets, make_spec(Network(network_dim=8), BOTH), "fp16")
    assert list(found["keys"].items()) == list(expected.items())
    parameters = sum(math.prod(shape) for shape in expected.values())
    assert 2 * parameters < found["bytes"] < 2 * parameters + 160 * len(expected)


def test_conv_dim_is_the_rank_of_3x3_convolutions_only() -> None:
    spec = make_spec(Network(network_dim=8, network_alpha=4, conv_dim=3), BOTH)
    assert [spec.rank(target_named(name)) for name in (LINEAR, POINT, TIME, SQUARE)] == [8, 8, 8, 3]
    assert [spec.alpha(target_named(name)) for name in (LINEAR, POINT, TIME, SQUARE)] == [4, 4, 4, 1]
    shapes = spec.shapes(tiny_targets())
    assert shapes[f"{SQUARE}.lora_down.weight"] == (3, 64, 3, 3)
    assert shapes[f"{SQUARE}.lora_up.weight"] == (64, 3, 1, 1)
    assert shapes[f"{TIME}.lora_down.weight"] == (8, 128)
    assert make_spec(Network(conv_dim=3, conv_alpha=2.5), BOTH).alpha(target_named(SQUARE)) == 2.5


def test_without_conv_dim_residual_blocks_have_no_adapter() -> None:
    names = {target.name for target in make_spec(Network(), BOTH).select(tiny_targets())}
    assert {LINEAR, POINT, TEXT} <= names
    assert not names & {SQUARE, TIME}


def test_only_trained_components_have_keys() -> None:
    for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        shapes = make_spec(Network(), [component]).shapes(tiny_targets())
        assert shapes and all(key.startswith(prefix) for key in shapes)
    with pytest.raises(ModelError, match="No layer is left"):
        make_spec(Network(), []).select(tiny_targets())


def test_alpha_0_means_the_rank() -> None:
    assert LoraSpec(8, 0.0).alpha(target_named(LINEAR)) == 8
    assert LoraSpec(8, 4.0).scale(target_named(LINEAR)) == 0.5


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("float", torch.float32)])
def test_file_bytes_is_the_size_of_the_file_without_metadata(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    spec = make_spec(Network(conv_dim=2), BOTH)
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, shape in spec.shapes(tiny_targets()).items()}
    size = file_with(tmp_path, tensors).stat().st_size
    # safetensors orders the tensors by name, so offsets may have a digit more or less here and there
    assert abs(spec.file_bytes(tiny_targets(), precision) - size) < 0.002 * size


def test_dim_from_weights_takes_modules_ranks_and_alphas_from_the_file(tmp_path: Path) -> None:
    tensors = module(LINEAR, 3, torch.tensor(1.5)) | module(SQUARE, 2) | module(TEXT, 5, torch.tensor(2.0))
    path = file_with(tmp_path, tensors)
    network = Network(network_weights=str(path), dim_from_weights=True)
    spec = make_spec(network, ["unet"])
    assert [target.name for target in spec.select(tiny_targets())] == [LINEAR, SQUARE]
    assert (spec.rank(target_named(LINEAR)), spec.alpha(target_named(LINEAR))) == (3, 1.5)
    assert (spec.rank(target_named(SQUARE)), spec.alpha(target_named(SQUARE))) == (2, 2.0)
    assert TEXT in {target.name for target in make_spec(network, BOTH).select(tiny_targets())}


def test_other_ranks_in_network_weights_are_refused_with_both_ranks(tmp_path: Path) -> None:
    header = read_header(file_with(tmp_path, module(LINEAR, 3)))
    spec = make_spec(Network(network_dim=4, network_alpha=3), BOTH)
    with pytest.raises(ModelError, match=r"rank 3 at lora_unet_mid_\w+, the settings have 4 \(network_dim\)"):
        spec.check(tiny_targets(), header)
    spec = make_spec(Network(network_dim=3, network_alpha=1), BOTH)
    with pytest.raises(ModelError, match=r"alpha 3 at \w+, the settings have 1 \(network_alpha\).*dim_from_weights"):
        spec.check(tiny_targets(), header)
    make_spec(Network(network_dim=3, network_alpha=3), BOTH).check(tiny_targets(), header)
    with pytest.raises(ModelError, match="has no module of this LoRA"):
        make_spec(Network(network_dim=3, network_alpha=3), ["text_encoder"]).check(tiny_targets(), header)


def test_a_lora_for_another_kind_of_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    tensors = module(LINEAR, 3)
    tensors[f"{LINEAR}.lora_down.weight"] = torch.ones(3, 7)
    with pytest.raises(ModelError, match=r"another kind of model: lora_unet_mid\w+ goes from 7 to 64 features"):
        make_spec(Network(network_dim=3, network_alpha=3), BOTH).check(
            tiny_targets(), read_header(file_with(tmp_path, tensors))
        )


@pytest.mark.parametrize(
    ("alpha", "value"),
    [
        (torch.tensor(4), 4.0),
        (torch.tensor(0.5, dtype=torch.float16), 0.5),
        (torch.tensor(12.5, dtype=torch.bfloat16), 12.5),
        (torch.tensor(-3.25, dtype=torch.bfloat16), -3.25),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),
        (torch.tensor([2.0]), 2.0),
        (None, 3.0),
    ],
)
def test_alpha_is_read_in_every_dtype_and_is_the_rank_where_missing(
    tmp_path: Path, alpha: torch.Tensor | None, value: float
) -> None:
    header = read_header(file_with(tmp_path, module(LINEAR, 3, alpha), {"ss_network_dim": "3"}))
    assert header.alphas == {LINEAR: value}
    assert header.ranks == {LINEAR: 3}
    assert header.metadata == {"ss_network_dim": "3"}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "PEFT's key names"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora.down.weight", "diffusers' key names"),
        ("lora_unet_x.hada_w3_a", "LoHa"),
        ("lora_unet_x.lokr_w3", "LoKr"),
        ("lora_unet_x.a1.weight", "GLoRA"),
        ("lora_unet_x.q_layer.weight", "T-LoRA"),
        ("lora_unet_x.w_norm", "norms"),
        ("lora_unet_x.diff", "whole differences"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a checkpoint, not a LoRA"),
        ("emb_params", "textual inversion"),
        ("something.else", "it has something.else"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, key: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"some.safetensors is .*{what}"):
        read_header(file_with(tmp_path, {key: torch.zeros(2, 2)}))


def test_a_boft_is_told_from_an_oft_by_its_axes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a LyCORIS BOFT"):
        read_header(file_with(tmp_path, {"lora_unet_x.oft_blocks": torch.zeros(2, 4, 4, 4)}))


def test_files_that_are_damaged_or_missing_are_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path, module(LINEAR, 3))
    whole = path.read_bytes()
    cases = {
        b"": "no header",
        whole[:60]: "cut short",
        whole[:-1]: "promises",
        b"PK\x03\x04" + b"\xff" * 100: "no .safetensors file",
        struct.pack("<Q", 2) + b"[]": "not that of a safetensors file",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_header(path)
    with pytest.raises(ModelError, match=r"absent\.safetensors can't be read: No such file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(ModelError, match="can't be read"):
        read_header(tmp_path)


def test_a_module_whose_matrices_disagree_is_refused(tmp_path: Path) -> None:
    tensors = module(LINEAR, 3) | {f"{LINEAR}.lora_up.weight": torch.ones(64, 2)}
    with pytest.raises(ModelError, match="damaged"):
        read_header(file_with(tmp_path, tensors))
    with pytest.raises(ModelError, match="not one number"):
        read_header(file_with(tmp_path, module(LINEAR, 3, torch.ones(2))))
    with pytest.raises(ModelError, match="alpha is nan"):
        read_header(file_with(tmp_path, module(LINEAR, 3, torch.tensor(float("nan")))))
