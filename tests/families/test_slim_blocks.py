"""diffusers' blocks in short against diffusers' own: the same bits, forward and backward."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.checkpoints import tiny_modules
from trainer.families.unet import slim_blocks
from trainer.families.unet.slim_blocks import (
    SlimAttention,
    SlimEncoder,
    SlimGate,
    SlimResidual,
    attended,
    slimmed,
)
from trainer.forecast import kernels
from trainer.forecast.ledger import Ledger


def kinds(model: nn.Module) -> set[type]:
    """The classes of a model's blocks; of those that are computed in short, ours."""
    blocks = [each for each in model.modules() if isinstance(each, Attention | ResnetBlock2D | GEGLU)]
    ours = (SlimAttention, SlimResidual, SlimGate)
    return {next((one for one in ours if isinstance(each, one)), type(each)) for each in blocks}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_unet_gives_the_same_bits(
    checkpointing: bool, frozen: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim_blocks, "_VECTOR", 0)  # narrow heads are padded, which rounds otherwise
    monkeypatch.setattr(slim_blocks, "_FEW", 0)  # and few tokens are attended to in float32
    unet = tiny_modules()[0].requires_grad_(not frozen).to(dtype)
    brief = slimmed(copy.deepcopy(unet))
    assert kinds(brief) == {SlimAttention, SlimResidual, SlimGate}
    noisy, context = (drawn(*shape).to(dtype).detach().requires_grad_() for shape in ((2, 4, 16, 16), (2, 77, 32)))
    results = []
    for model in (unet, brief):
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(noisy, torch.tensor([3, 500]), context).sample
        asked = [each for each in (noisy, context, *model.parameters()) if each.requires_grad]
        results.append([output, *torch.autograd.grad(output.float().square().mean(), asked)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@torch.no_grad()
def test_a_vae_gives_the_same_bits() -> None:
    vae = tiny_modules()[1]
    brief = slimmed(copy.deepcopy(vae))
    assert kinds(brief) == {Attention, SlimResidual}, "its attention has a norm and a residual of its own"
    assert isinstance(brief.encoder, SlimEncoder)
    pixels = drawn(1, 3, 64, 48)
    assert torch.equal(vae.encode(pixels).latent_dist.mean, brief.encode(pixels).latent_dist.mean)
    latents = drawn(1, 4, 8, 6)
    assert torch.equal(vae.decode(latents).sample, brief.decode(latents).sample)
    most = []
    for model in (vae, brief):
        with Ledger() as ledger:
            model.encode(torch.zeros(1, 3, 128, 128))
        most.append(ledger.peak)
    assert most[1] <= 0.8 * most[0], "nothing is kept from one block to the next"


@pytest.mark.parametrize("features", [5, 10, 16, 40])
def test_narrow_heads_attend_as_wide_ones_do(features: int) -> None:
    parts = [drawn(2, 3, 70, features), drawn(2, 3, 77, features) * 2, drawn(2, 3, 77, features)]
    ours, theirs = attended(*parts), F.scaled_dot_product_attention(*parts)
    assert ours.shape == theirs.shape
    gradients = [torch.autograd.grad(each.square().sum(), parts) for each in (ours, theirs)]
    for mine, other in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
        assert (mine - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("features", [10, 40])
def test_few_products_in_bf16_are_made_in_float32(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [drawn(2, 3, tokens, features).detach().bfloat16().requires_grad_() for tokens in (70, 77, 77)]
    wide, back = [part.detach().float().requires_grad_() for part in parts], torch.ones(2, 3, 70, features)
    ours, exact = attended(*parts), attended(*wide)
    assert torch.equal(ours, exact.bfloat16())
    gradients = zip(
        torch.autograd.grad(ours, parts, back.bfloat16()), torch.autograd.grad(exact, wide, back), strict=True
    )
    assert all(torch.equal(one, other.bfloat16()) for one, other in gradients)
    monkeypatch.setattr(slim_blocks, "_FEW", 70 * 77 * features - 1)
    assert not torch.equal(attended(*parts), ours), "as much as this stays in bf16"


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_a_forecast_computes_attention_as_its_device_does(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []
    with kernels.of_device(device):
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_: asked.append(query.dtype) or query)
        attended(*(torch.empty(1, 2, 64, 16, device="meta", dtype=torch.bfloat16) for _ in range(3)))
        monkeypatch.undo()
    assert asked == [dtype]


def test_an_attention_asked_for_more_does_as_diffusers_does() -> None:
    unet = tiny_modules()[0]
    whole = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    brief = slimmed(copy.deepcopy(unet)).mid_block.attentions[0].transformer_blocks[0].attn1
    states, mask = drawn(1, 6, whole.query_dim), torch.tensor([[0.0, 0.0, -1e4, 0.0, -1e4, 0.0]])[:, None]
    assert torch.equal(whole(states, attention_mask=mask), brief(states, attention_mask=mask))
    assert not torch.equal(brief(states, attention_mask=mask), brief(states))


def test_other_blocks_stay_as_they_are() -> None:
    others = nn.ModuleList(
        [
            Attention(32, heads=2, residual_connection=True),
            Attention(32, heads=2, rescale_output_factor=2.0),
            Attention(32, heads=2, dropout=0.1),
            Attention(32, heads=2, norm_num_groups=4),
            ResnetBlock2D(in_channels=32, output_scale_factor=2.0),
            ResnetBlock2D(in_channels=32, time_embedding_norm="scale_shift"),
            ResnetBlock2D(in_channels=32, dropout=0.1),
            ResnetBlock2D(in_channels=32, down=True),
            ResnetBlock2D(in_channels=32, non_linearity="gelu"),
        ]
    )
    assert kinds(slimmed(others)) == {Attention, ResnetBlock2D}


BLOCKS = ("Attention", "AttnProcessor2_0", "ResnetBlock2D")


@pytest.mark.parametrize("name", BLOCKS)
def test_a_class_that_another_diffusers_lacks_leaves_its_blocks_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_modules()[0]
    assert {slim_blocks.ATTENTION[1], slim_blocks.PROCESSOR[1], slim_blocks.RESIDUAL[1]} == set(BLOCKS)
    for module, known in (slim_blocks.ATTENTION, slim_blocks.PROCESSOR, slim_blocks.RESIDUAL):
        if known == name:
            monkeypatch.delattr(f"{module}.{name}")
    left = {SlimAttention, ResnetBlock2D} if name == "ResnetBlock2D" else {Attention, SlimResidual}
    assert kinds(slimmed(unet)) == left | {SlimGate}


def test_modules_that_another_diffusers_lacks_leave_the_blocks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTENTION", "PROCESSOR", "RESIDUAL", "GATE"):
        monkeypatch.setattr(slim_blocks, name, ("diffusers.models.elsewhere", getattr(slim_blocks, name)[1]))
    assert kinds(slimmed(tiny_modules()[0])) == {Attention, ResnetBlock2D, GEGLU}


ATTRIBUTES = {
    Attention: (
        *("processor", "spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "residual_connection"),
        *("rescale_output_factor", "to_out", "heads", "to_q", "to_k", "to_v"),
    ),
    ResnetBlock2D: (
        *("upsample", "downsample", "time_embedding_norm", "skip_time_act", "nonlinearity", "output_scale_factor"),
        *("dropout", "norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
    ),
    GEGLU: ("proj",),
}


OF_ENCODERS = (
    *("conv_in", "down_blocks", "mid_block", "conv_norm_out", "conv_act", "conv_out"),
    "gradient_checkpointing",
)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ATTRIBUTES.items() for name in names])
def test_an_attribute_that_another_diffusers_lacks_leaves_the_block_as_it_is(kind: type[nn.Module], name: str) -> None:
    block = {Attention: Attention(32, heads=2), ResnetBlock2D: ResnetBlock2D(in_channels=32), GEGLU: GEGLU(8, 8)}[kind]
    assert kinds(slimmed(copy.deepcopy(block))) != {kind}
    delattr(block, name)
    assert kinds(slimmed(block)) == {kind}


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_so_it_does_with_a_vaes_encoder(name: str) -> None:
    encoder = Encoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    assert isinstance(slimmed(copy.deepcopy(encoder)), SlimEncoder)
    delattr(encoder, name)
    assert type(slimmed(encoder)) is Encoder


def test_every_attribute_that_is_read_is_taken_away_above() -> None:
    source = Path(slim_blocks.__file__).read_text()
    own = {"self": set(), "block": set()}  # type: ignore[var-annotated]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own:
            own[node.value.id].add(node.attr)
    taken = {name for names in (*ATTRIBUTES.values(), OF_ENCODERS) for name in names}
    assert own["self"] | own["block"] == taken | {"time_emb_proj"}, "of which the other versions are the scale_shift"
