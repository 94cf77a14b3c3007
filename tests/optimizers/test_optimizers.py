"""Every optimizer through the same promises: arguments as data, steps as the original's, exact state."""

from __future__ import annotations

import inspect
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import bitsandbytes.optim
import dadaptation
import pytest
import pytorch_optimizer
import torch
import transformers.optimization
from hypothesis import given, settings
from hypothesis import strategies as st
from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree

from tests.helpers.optimizers import RECORDED, groups, set_gradients, share, take_steps, trajectory
from trainer.ground.errors import ConfigError, RunError
from trainer.optimizers import OPTIMIZERS, Number, Numbers, OptimizerKind, kind_of, optimizer_name
from trainer.optimizers.bnb import BitsAndBytes
from trainer.optimizers.schedule_free import ScheduleFree
from trainer.schedules import Schedule
from trainer.settings.arguments import parse

RATES = {
    name: 1.0 if kind.finds_rate else 1e-3 if "Lion" in name or name == "CAME" else 1e-2
    for name, kind in OPTIMIZERS.items()
}
KINDS = [pytest.param(kind, id=name) for name, kind in OPTIMIZERS.items()]


# --- arguments -------------------------------------------------------------------------------------------------------


def is_free(kind: type[OptimizerKind]) -> bool:
    return issubclass(kind, ScheduleFree)


EIGHT_BIT = [kind for kind in OPTIMIZERS.values() if issubclass(kind, BitsAndBytes)]
PACKAGES: dict[str, type[torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    **{kind.name: getattr(bitsandbytes.optim, kind.constructor) for kind in EIGHT_BIT},
    "DAdaptAdam": pytorch_optimizer.DAdaptAdam,
    "Prodigy": pytorch_optimizer.Prodigy,
    "Adafactor": transformers.optimization.Adafactor,
    "Lion": pytorch_optimizer.Lion,
    "CAME": pytorch_optimizer.CAME,
    "SGDNesterov": torch.optim.SGD,
    **{kind.name: getattr(pytorch_optimizer, kind.constructor) for kind in OPTIMIZERS.values() if is_free(kind)},
    **{name: getattr(pytorch_optimizer, name) for name in ("DAdaptAdaGrad", "DAdaptLion", "DAdaptSGD")},
    "DAdaptAdan": dadaptation.DAdaptAdan,
    "ProdigyPlusScheduleFree": ProdigyPlusScheduleFree,
}
NOT_OFFERED = {
    "self", "params", "lr", "kwargs",  # ours to give
    "foreach", "fused", "capturable", "differentiable", "maximize",  # how torch computes, or not training at all
    "fixed_decay",  # sd-scripts' packages have no such thing
    "amsgrad", "optim_bits", "args", "is_paged",  # bitsandbytes refuses the first two; args replaces the others
    "nesterov", "dampening",  # what the name says; 0 where there is a Nesterov's momentum
    "log_every",  # of telling
}  # fmt: skip
NOT_OFFERED_BY = {
    "Lion": {"weight_decouple"},  # lion-pytorch has decoupled decay only
    "CAME": {"weight_decouple", "ams_bound"},  # came-pytorch has neither
    "DAdaptAdaGrad": {"weight_decouple"},  # dadaptation's has coupled decay only,
    "DAdaptSGD": {"weight_decouple"},  # as this one,
    "DAdaptLion": {"weight_decouple"},  # and decoupled only here
    "PagedAdamW32bit": {"min_8bit_size"},  # nothing is kept in 8 bits
    "AdamWScheduleFree": {"decoupling_c", "ams_bound"},  # schedulefree has neither
    "RAdamScheduleFree": {"silent_sgd_phase"},  # False takes other steps there
    "SGDScheduleFree": {"eps"},  # which reads it nowhere
    "ProdigyPlusScheduleFree": {"stochastic_rounding", "fused_back_pass"},  # of how sd-scripts runs it
}
TAKEN_APART = {("CAME", "eps"): ("eps1", "eps2")}
"""Arguments that the original package takes together, and ours one by one."""
OUR_DEFAULTS = {
    ("Adafactor", "scale_parameter"),
    ("Adafactor", "relative_step"),
    *[(name, "momentum") for name in ("SGDNesterov", "SGDNesterov8bit")],  # sd-scripts'
    *[("DAdaptAdaGrad", "eps"), ("DAdaptLion", "betas"), ("DAdaptSGD", "momentum")],  # dadaptation's
}


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_the_constructors(kind: type[OptimizerKind]) -> None:
    real = inspect.signature(PACKAGES[kind.name].__init__).parameters
    offered: dict[str, tuple[str, object]] = {}
    for name, spec in kind.arguments.items():
        parts = TAKEN_APART.get((kind.name, name), (spec.parameter or name,))
        defaults = spec.default if len(parts) > 1 and isinstance(spec.default, tuple) else (spec.default,)
        offered |= {part: (name, default) for part, default in zip(parts, defaults, strict=True)}
    assert not offered.keys() - real.keys()
    assert not real.keys() - offered.keys() - NOT_OFFERED - NOT_OFFERED_BY.get(kind.name, set())
    for parameter, (name, default) in offered.items():
        if (kind.name, name) not in OUR_DEFAULTS:
            assert real[parameter].default == default, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_a_value_that_may_be_given(kind: type[OptimizerKind]) -> None:
    finite = {name: spec for name, spec in kind.arguments.items() if spec.default != math.inf}
    assert kind.problems([f"{name}={spec.default}" for name, spec in finite.items()]) == []
    assert all(spec.help.endswith(".") for spec in kind.arguments.values())


@pytest.mark.parametrize(
    ("name", "texts", "options"),
    [
        ("AdamW", ["weight_decay=0.1", "betas=.9,.99"], {"weight_decay": 0.1, "betas": (0.9, 0.99)}),
        ("AdamW", [" weight_decay = 0 ", "betas=[0.5, 0.75]"], {"weight_decay": 0, "betas": (0.5, 0.75)}),
        ("Prodigy", ["decouple=False", "d_coef=2"], {"weight_decouple": False, "d_coef": 2}),
        ("Prodigy", ["use_bias_correction=True", "beta3=None"], {"bias_correction": True, "beta3": None}),
        ("Adafactor", ["relative_step=True", "warmup_init=True"], {"relative_step": True, "warmup_init": True}),
    ],
)
def test_arguments_are_literals_as_in_sd_scripts(name: str, texts: list[str], options: dict[str, Any]) -> None:
    assert OPTIMIZERS[name].options(texts).items() >= options.items()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("AdamW", "weight_decay", "'weight_decay' has no value; write it as name=value, for example weight_decay=0.01"),
        ("AdamW", "wieght_decay=1", "did you mean weight_decay? it takes betas, eps, weight_decay, amsgrad"),
        ("AdamW", "decouple=True", "AdamW has no argument 'decouple'; it takes betas, eps, weight_decay, amsgrad"),
        ("AdamW", "eps=small", "eps=small cannot be used; eps must be a number at least 0"),
        ("AdamW", "weight_decay=-1", "weight_decay must be a number at least 0"),
        ("AdamW", "weight_decay=True", "weight_decay must be a number"),
        ("AdamW", "weight_decay=1e999", "weight_decay must be a number"),
        ("AdamW", "betas=0.9", "betas must be two numbers such as 0.9,0.999, each a number at least 0 and below 1"),
        ("AdamW", "betas=0.9,1", "betas must be two numbers"),
        ("AdamW", "amsgrad=1", "amsgrad must be True or False"),
        ("Prodigy", "decouple=true", "decouple=true cannot be used; decouple must be True or False"),
        ("Prodigy", "beta3=2", "beta3 must be a number at least 0 and below 1, or None"),
        ("AdamW8bit", "min_8bit_size=1.5", "min_8bit_size must be a whole number at least 0"),
        ("Adafactor", "warmup_init=True", "warmup_init=True has an effect only with relative_step=True"),
        ("Lion", "=1", "Lion has no argument ''"),
        ("Lion", "weight_decay=__import__('os')", "weight_decay must be a number at least 0"),
    ],
)
def test_a_wrong_argument_is_named_with_the_way_out(name: str, text: str, message: str) -> None:
    (problem,) = OPTIMIZERS[name].problems([text])
    assert message in problem
    with pytest.raises(ConfigError, match=r"^optimizer_args: "):
        OPTIMIZERS[name].build(groups(1.0), [text])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("betas=0.5,0.75,0.8", ""),
        ("betas=0.5,0.75", "betas must be three numbers such as 0.9,0.999,0.9999, each a number below 1"),
        ("betas=0.5,0.75,0.8,0.9", "three numbers"),
        ("betas=0.5,0.75,1", "three numbers"),
        ("betas=0.5", "three numbers"),
    ],
)
def test_an_argument_may_be_a_triple(text: str, problem: str) -> None:
    specs = {"betas": Numbers((0.9, 0.999, 0.9999), "Decays.", each=Number(0.9, "", below=1))}
    values, problems = parse("CAME", specs, [text])
    if problem:
        assert problem in problems[0] and values == {}
    else:
        assert (values, problems) == ({"betas": (0.5, 0.75, 0.8)}, [])


def test_all_wrong_arguments_are_named_at_once() -> None:
    assert len(OPTIMIZERS["AdamW"].problems(["eps=x", "eps=1", "eps=2", "betas=3", "d0=1"])) == 4


@given(st.lists(st.text() | st.text().map("weight_decay={}".format), max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_the_reading(texts: list[str]) -> None:
    for kind in OPTIMIZERS.values():
        assert all(isinstance(problem, str) for problem in kind.problems(texts))


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    json.loads(RECORDED.read_text())["cases"],
    ids=lambda case: "-".join([case["optimizer"], *case["arguments"]]),
)
def test_steps_are_those_of_the_original_package(case: dict[str, Any]) -> None:
    rate = case["learning_rate"]
    optimizer = OPTIMIZERS[case["optimizer"]].build(groups(rate, torch.float64), case["arguments"])
    for ours, original in zip(trajectory(optimizer, rate), case["points"], strict=True):
        assert ours.get("d", 0) == pytest.approx(original.get("d", 0), rel=1e-6), original["step"]
        assert ours["sums"] == pytest.approx(original["sums"], rel=1e-5, abs=1e-6), original["step"]
        for what in ("values", "used"):
            for values, expected in zip(ours.get(what, []), original.get(what, []), strict=True):
                assert values == pytest.approx(expected, rel=1e-5, abs=1e-6), (what, original["step"])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("AdamW", torch.optim.AdamW(groups(1e-2), weight_decay=0.1, foreach=False)),
        ("Adafactor", transformers.optimization.Adafactor(groups(1e-2), scale_parameter=False, relative_step=False)),
    ],
)
def test_steps_are_those_of_the_package_without_our_choices(name: str, plain: torch.optim.Optimizer) -> None:
    arguments = ["weight_decay=0.1"] if name == "AdamW" else []
    ours = OPTIMIZERS[name].build(groups(1e-2), arguments)
    for optimizer in (ours, plain):
        take_steps(optimizer, 1e-2, range(20))
    for mine, theirs in zip(parameters(ours), parameters(plain), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_8bit_state_is_8bit_and_close_to_32bit() -> None:
    small = OPTIMIZERS["AdamW8bit"].build(groups(1e-3, widen=256))
    full = OPTIMIZERS["AdamW"].build(groups(1e-3, widen=256))
    for optimizer in (small, full):
        take_steps(optimizer, 1e-3, range(10))
    dtypes = {parameter.numel(): state["state1"].dtype for parameter, state in small.state.items()}
    assert dtypes == {3840: torch.float32, 1536: torch.float32, 6144: torch.uint8, 13824: torch.uint8}
    starts = parameters(OPTIMIZERS["AdamW"].build(groups(1e-3, widen=256)))
    for mine, theirs, start in zip(parameters(small), parameters(full), starts, strict=True):
        assert (mine - theirs).norm() < 0.05 * (theirs - start).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_none_is_left_alone(kind: type[OptimizerKind]) -> None:
    optimizer = kind.build(groups(RATES[kind.name]))
    before = [parameter.detach().clone() for parameter in parameters(optimizer)]
    for step in range(8):  # RAdam does nothing in its first
        set_gradients(optimizer, step)
        optimizer.param_groups[0]["params"][1].grad = None
        optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, parameters(optimizer), strict=True)]
    assert changed == [True, False, True, True]


# --- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_in_effect_is_told_for_each_group(kind: type[OptimizerKind]) -> None:
    optimizer = kind.build(groups(RATES[kind.name]))
    take_steps(optimizer, RATES[kind.name], range(10))
    found = kind.step_size(optimizer)
    scheduled = RATES[kind.name] * share(9)
    assert (found is not None) == kind.finds_rate
    found_by = [float(group.get("d", 1.0)) for group in optimizer.param_groups]
    assert list(kind.rates(optimizer).values()) == pytest.approx([scheduled * each for each in found_by])
    assert list(kind.rates(optimizer)) == ["text_encoder", "unet"]
    assert found is None or found == max(found_by)
    if found is not None:
        assert found > 1e-6


def test_relative_steps_of_adafactor_tell_their_own_rate() -> None:
    kind = OPTIMIZERS["Adafactor"]
    for arguments in (["relative_step=True"], ["relative_step=True", "warmup_init=True"]):
        optimizer = kind.build(groups(5.0), arguments)
        assert kind.rates(optimizer) == {"text_encoder": 0.0, "unet": 0.0}
        take_steps(optimizer, 5.0, range(3))
        group = optimizer.param_groups[0]
        expected = transformers.optimization.Adafactor._get_lr(group, optimizer.state[group["params"][0]])
        assert kind.rates(optimizer) == pytest.approx({"text_encoder": expected, "unet": expected})


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.one_rate])
def test_one_rate_optimizers_refuse_two(name: str) -> None:
    uneven = groups(1.0)
    uneven[0]["lr"] = 0.5
    with pytest.raises(ConfigError, match=r"learning_rate: .*text_encoder 0\.5, unet 1"):
        OPTIMIZERS[name].build(uneven)


def test_adamw_schedule_free_steps_by_its_formula_for_gradients_as_small_as_a_loras() -> None:
    """schedulefree's step with gradients of 1e-7, beside whose squares nothing may be added but eps."""
    optimizer = OPTIMIZERS["AdamWScheduleFree"].build(groups(1e-3, torch.float64))
    (parameter, *others) = parameters(optimizer)
    y, z, squares, weights = parameter.clone(), parameter.clone(), torch.zeros_like(parameter), 0.0
    for step in range(1, 9):
        gradient = 1e-7 * torch.sin(torch.arange(y.numel(), dtype=torch.float64).reshape(y.shape) + step)
        optimizer.param_groups[0]["params"][0].grad = gradient.clone()
        optimizer.step()
        squares = 0.999 * squares + 0.001 * gradient**2
        change = gradient / ((squares / (1 - 0.999**step)).sqrt() + 1e-8)
        weights += 1e-3**2
        share = 1e-3**2 / weights
        y = y + share * (z - y) - 1e-3 * (1 - 0.9 * (1 - share)) * change
        z = z - 1e-3 * change
    torch.testing.assert_close(parameters(optimizer)[0], y, rtol=1e-9, atol=1e-12)


# --- what is used ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.schedule_free])
def test_what_is_used_of_a_schedule_free_optimizer_is_its_average_and_changes_nothing(
    name: str, dtype: torch.dtype
) -> None:
    optimizer = OPTIMIZERS[name].build(groups(RATES[name]))
    take_steps(optimizer, RATES[name], range(12))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in own:
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
    before = through_a_file({"state": optimizer.state_dict(), "weights": parameters(optimizer)})
    places = [parameter.data_ptr() for parameter in own]
    found = OPTIMIZERS[name].evaluated(optimizer)
    assert_same_bits(through_a_file({"state": optimizer.state_dict(), "weights": parameters(optimizer)}), before)
    assert [parameter.data_ptr() for parameter in own] == places
    for parameter in own:
        parameter.data = parameter.data.float()
    optimizer.eval()  # type: ignore[attr-defined]
    assert found is not None
    assert_same_bits(found, [parameter.detach().to(dtype) for parameter in own])
    assert any(not torch.equal(mine, weights) for mine, weights in zip(found, before["weights"], strict=True))


def test_what_is_used_of_the_others_is_what_is_trained() -> None:
    for name in ("AdamW", "Prodigy", "CAME"):
        assert OPTIMIZERS[name].evaluated(OPTIMIZERS[name].build(groups(1.0))) is None


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("adamw8BIT", "AdamW8bit"),
        ("PagedAdamW", "PagedAdamW32bit"),
        ("schedulefree.AdamWScheduleFree", "AdamWScheduleFree"),
        ("prodigyplus.ProdigyPlusScheduleFree", "ProdigyPlusScheduleFree"),
        ("pytorch_optimizer.AdaBelief", "pytorch_optimizer.AdaBelief"),
        ("RMSprop", "RMSprop"),
        ("DAdaptation", "dadaptation.experimental.DAdaptAdamPreprint"),
    ],
)
def test_a_spelling_means_one_optimizer(spelling: str, name: str) -> None:
    assert optimizer_name(spelling) == name
    assert kind_of(name).name == name


@pytest.mark.parametrize("text", ["AdamQ", "", "a.b; import os", "os.system('x')", "a..b", "a.__class__.b", "-x.y"])
def test_what_is_no_name_of_a_class_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        optimizer_name(text)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pytorch_optimizer.AdaBelief", ["weight_decay=0.1", "betas=0.9,0.99"]),
        ("pytorch_optimizer.optimizer.adan.Adan", []),
        ("bitsandbytes.optim.AdEMAMix8bit", ["weight_decay=0.1"]),
        ("torch.optim.RMSprop", ["momentum=0.5"]),
        ("Adamax", []),
        ("dadaptation.experimental.DAdaptAdamPreprint", []),
    ],
)
def test_any_optimizer_of_a_package_steps_and_resumes(name: str, arguments: list[str]) -> None:
    def fresh() -> torch.optim.Optimizer:
        return kind_of(name).build(groups(1e-2), arguments)

    whole, first, second = fresh(), fresh(), fresh()
    take_steps(whole, 1e-2, range(8))
    take_steps(first, 1e-2, range(5))
    saved = through_a_file({"optimizer": first.state_dict(), "parameters": parameters(first)})
    for parameter, value in zip(parameters(second), saved["parameters"], strict=True):
        parameter.copy_(value)
    second.load_state_dict(saved["optimizer"])
    take_steps(second, 1e-2, range(5, 8))
    assert_same_bits(parameters(second), parameters(whole))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("antigravity.fly", [], "optimizer_type: no package 'antigravity' is installed"),
        ("os.system", [], "optimizer_type: no package 'os' is installed"),
        ("tests.helpers.optimizers", [], "optimizer_type: no package 'tests' is installed"),
        ("nowhere.Adam", [], "optimizer_type: no package 'nowhere' is installed"),
        ("torch.optim.AdamQ", [], "optimizer_type: it cannot be imported"),
        ("torch.nn.Linear", [], "optimizer_type: it is no optimizer of PyTorch's kind"),
        ("torch.optim.Optimizer", [], "optimizer_type: it is no optimizer that can be used by itself"),
        (
            "pytorch_optimizer.AdaBelief",
            ["wieght_decay=1"],
            "no argument 'wieght_decay'; did you mean weight_decay",
        ),
        ("pytorch_optimizer.AdaBelief", ["lr=1"], "has no argument 'lr'"),
        ("pytorch_optimizer.AdaBelief", ["weight_decay=-1"], "refuses them"),
        ("pytorch_optimizer.AdaBelief", ["weight_decay"], "has no value"),
    ],
)
def test_what_cannot_be_an_optimizer_is_refused_by_name(name: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind_of(name).build(groups(1e-2), arguments)


# --- state -----------------------------------------------------------------------------------------------------------

VARIANTS = [
    *[(name, []) for name in OPTIMIZERS],
    ("AdamW", ["amsgrad=True"]),
    ("AdamW8bit", ["min_8bit_size=0"]),
    ("DAdaptAdam", ["decouple=True", "weight_decay=0.01", "use_bias_correction=True", "growth_rate=1.5"]),
    ("Prodigy", ["weight_decay=0.01", "use_bias_correction=True", "safeguard_warmup=True", "d_coef=2"]),
    ("Adafactor", ["beta1=0.9", "scale_parameter=True", "relative_step=True", "warmup_init=True"]),
    ("Lion", ["weight_decay=0.1"]),
    ("AdamWScheduleFree", ["weight_decay=0.1", "warmup_steps=3"]),
    ("DAdaptAdan", ["no_prox=True"]),
    ("ProdigyPlusScheduleFree", ["split_groups=False", "use_bias_correction=True"]),
    ("ProdigyPlusScheduleFree", ["use_schedulefree=False", "use_speed=True"]),
]


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]


def fresh(name: str, arguments: Sequence[str], dtype: torch.dtype) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = OPTIMIZERS[name].build(groups(RATES[name], dtype, widen=256), arguments)
    return optimizer, Schedule(12, name="cosine", warmup=2).build(optimizer)


def train(optimizer: torch.optim.Optimizer, scheduler: Any, steps: Sequence[int]) -> None:
    for step in steps:
        set_gradients(optimizer, step)
        optimizer.step()
        scheduler.step()


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Compare nested dicts, lists and tensors, dtypes included."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same_bits(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same_bits(mine, other)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("cut", [1, 7], ids=["cut after the step at rate 0", "cut in the middle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "arguments"), VARIANTS, ids=lambda value: "-".join(value) if isinstance(value, list) else value
)
def test_a_resumed_optimizer_goes_on_with_the_same_bits(
    name: str, arguments: list[str], dtype: torch.dtype, cut: int
) -> None:
    whole, schedule = fresh(name, arguments, dtype)
    train(whole, schedule, range(12))

    first, schedule = fresh(name, arguments, dtype)
    train(first, schedule, range(cut))
    saved = through_a_file(
        {"optimizer": first.state_dict(), "schedule": schedule.state_dict(), "parameters": parameters(first)}
    )

    second, schedule = fresh(name, arguments, dtype)
    for parameter, value in zip(parameters(second), saved["parameters"], strict=True):
        parameter.copy_(value)
    second.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    assert_same_bits(through_a_file(second.state_dict()), saved["optimizer"])
    train(second, schedule, range(cut, 12))

    assert_same_bits(parameters(second), parameters(whole))
    assert_same_bits(second.state_dict(), whole.state_dict())
    assert not torch.equal(parameters(whole)[0], groups(1.0, dtype, widen=256)[0]["params"][0])


@pytest.mark.parametrize("name", ["DAdaptAdam", "Prodigy"])
def test_a_state_loaded_to_the_cpu_moves_to_the_parameters(name: str) -> None:
    trained = OPTIMIZERS[name].build(groups(1.0))
    take_steps(trained, 1.0, range(3))
    elsewhere = groups(1.0)
    for group in elsewhere:
        group["params"] = [torch.nn.Parameter(parameter.detach().to("meta")) for parameter in group["params"]]
    resumed = OPTIMIZERS[name].build(elsewhere)
    resumed.load_state_dict(through_a_file(trained.state_dict()))
    tensors = [value for group in resumed.param_groups for value in group.values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_class_is_called_as_its_package_calls_it(kind: type[OptimizerKind]) -> None:
    """`ss_optimizer` in a saved file is made of these two."""
    built, package = type(kind.build(groups(1.0))), PACKAGES[kind.name]
    assert (built.__module__, built.__name__) == (package.__module__, package.__name__)


# --- set-up ----------------------------------------------------------------------------------------------------------


def test_importing_the_optimizers_imports_no_torch() -> None:
    code = (
        "import sys; from trainer.optimizers import OPTIMIZERS;"
        "[kind.problems(['weight_decay=1', 'x']) for kind in OPTIMIZERS.values()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_bitsandbytes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RunError, match=r"AdamW8bit needs the package bitsandbytes.*choose AdamW\."):
        OPTIMIZERS["AdamW8bit"].build(groups(1.0))


def test_the_rate_that_is_shown_for_adafactor_is_the_one_that_acts() -> None:
    down, up = torch.full((4, 8), 0.5), torch.zeros(8, 4)
    for arguments, shown in (([], 0.01), (["scale_parameter=True"], 0.01 * (0.5 + 1e-3) / 2)):
        parameters = [torch.nn.Parameter(each.clone()) for each in (down, up)]
        optimizer = OPTIMIZERS["Adafactor"].build([{"params": parameters, "lr": 0.01, "name": "unet"}], arguments)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert OPTIMIZERS["Adafactor"].rates(optimizer)["unet"] == pytest.approx(shown, rel=0.05)
