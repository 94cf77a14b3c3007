"""Every kind of adapter on every family's real structure: nil at the start, learns, saved and loaded, scaled, detached.

In the suite each kind meets one family; `--thorough` runs all pairs. Kills and resumes are in tests/runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.families import TINY
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.adapters import make_spec, read_header
from trainer.adapters.injection import InjectedAdapter
from trainer.config import load_config, rates
from trainer.families.unet.bundle import StableBundle
from trainer.results.export import read_adapter, save

KINDS: dict[str, dict[str, object]] = {
    "lora": {"network_type": "lora"},
    "dora": {"network_type": "locon", "dora_wd": True},
    "dora by output": {"network_type": "locon", "dora_wd": True, "wd_on_output": True},
    "locon": {"network_type": "locon", "use_tucker": True, "use_scalar": True},
    "loha": {"network_type": "loha"},
    "lokr": {"network_type": "lokr", "factor": 4},
    "lokr, whole": {"network_type": "lokr", "full_matrix": True},
    "ia3": {"network_type": "ia3"},
    "oft": {"network_type": "oft"},
    "pissa": {"network_type": "lora", "init_lora_weights": "pissa"},
    "olora": {"network_type": "lora", "init_lora_weights": "olora"},
}
FAMILIES = list(TINY)
PAIRS = [(kind, family) for kind in KINDS for family in FAMILIES]
IN_THE_SUITE = {(kind, FAMILIES[number % len(FAMILIES)]) for number, kind in enumerate(KINDS)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.write_file(folder / f"{name}.safetensors") for name, tiny in TINY.items()}


def loaded(model: Path, kind: str, **more: object) -> tuple[StableBundle, InjectedAdapter]:
    """Return the model with an adapter of a kind, convolutions included."""
    own = {"network_dim": 4, "network_alpha": 2.0, "conv_dim": 2, "conv_alpha": 1.0, **KINDS[kind], **more}
    config = load_config(overrides={"pretrained_model_name_or_path": str(model), **own})
    bundle = families.load(config, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(bundle, StableBundle)
    spec = make_spec(config.network, rates(config, families.FAMILIES[bundle.family].parts), *config.of_adapters)
    return bundle, spec.build(bundle.components, bundle.targets(conv=True), seed=1)


def one_pass(bundle: StableBundle) -> Tensor:
    text = bundle.encode_text(tokens_of(bundle, "tok class, red"))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    return bundle.predict(noisy, torch.tensor([500]), text, {"sizes": sizes})


def output(bundle: StableBundle) -> Tensor:
    with torch.no_grad():
        return one_pass(bundle)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        pytest.param(kind, family, marks=() if (kind, family) in IN_THE_SUITE else pytest.mark.thorough)
        for kind, family in PAIRS
    ],
)
def test_every_kind_keeps_its_promises_on_every_family(
    models: dict[str, Path], kind: str, family: str, tmp_path: Path
) -> None:
    bundle, adapter = loaded(models[family], kind)
    with adapter.multiplied(0.0):
        plain = output(bundle)
    near = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(output(bundle), plain, **near)
    frozen = {
        name: value.clone()
        for part in bundle.components.values()
        for name, value in part.named_parameters()
        if not value.requires_grad and "base_layer" in name
    }
    wanted, losses = plain + 1, []
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    for _ in range(10):
        loss = (one_pass(bundle) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    after = {name: value for part in bundle.components.values() for name, value in part.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    trained, path = output(bundle), tmp_path / "file.safetensors"
    with adapter.multiplied(0.0):
        torch.testing.assert_close(output(bundle), plain, **near)
    assert torch.equal(output(bundle), trained)
    save(path, adapter.tensors(), {}, "float")
    assert read_header(path).modules.keys() == {module.target.name for module in adapter.modules}
    begun = kind in ("pissa", "olora")
    other, again = loaded(models[family], "lora" if begun else kind, network_weights=str(path), dim_from_weights=True)
    again.load(read_adapter(path).tensors)
    torch.testing.assert_close(output(other), trained, **near)
    third, restored = loaded(models[family], kind)
    restored.restore({key: value.clone() for key, value in adapter.state().items()})
    assert torch.equal(output(third), trained)
    with adapter.multiplied(0.5), again.multiplied(0.5):
        torch.testing.assert_close(output(bundle), output(other), **near)
