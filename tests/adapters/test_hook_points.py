from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_kernels.adapters import HookPoint, capture, intervene
from sae_kernels.errors import (
    AdapterError,
    ArgumentError,
    DeviceError,
    DtypeError,
    ShapeError,
    UnknownNameError,
)

Pair = namedtuple("Pair", ["hidden", "extra"])


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(first=nn.Linear(4, 6), act=nn.ReLU(inplace=True), second=nn.Linear(6, 3), third=nn.Linear(3, 2))
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# The grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layers.3.mlp", HookPoint("layers.3.mlp", "out")),
        ("layers.3.mlp:out", HookPoint("layers.3.mlp", "out")),
        ("layers.3.mlp:in", HookPoint("layers.3.mlp", "in")),
        (":in", HookPoint("", "in")),
        (HookPoint("a", "in"), HookPoint("a", "in")),
    ],
)
def test_parse(text: str, expected: HookPoint) -> None:
    assert HookPoint.parse(text) == expected


def test_text_of_a_point_parses_to_itself() -> None:
    assert HookPoint.parse(str(HookPoint("a.b", "in"))) == HookPoint("a.b", "in")


@pytest.mark.parametrize("text", ["", "a:", "a:inn", "a:b:in", None, 3])
def test_malformed(text: Any) -> None:
    with pytest.raises(ArgumentError, match="hook point"):
        HookPoint.parse(text)


def test_unknown_module_names_the_nearest(model: nn.Module, x: Tensor) -> None:
    with (
        pytest.raises(UnknownNameError, match=r"'secnd': did you mean 'second'"),
        capture(model, ["first", "secnd"]),
    ):
        model(x)
    assert n_hooks(model) == 0


# Capture


def test_captures_inputs_and_outputs_though_later_layers_work_in_place(model: nn.Sequential, x: Tensor) -> None:
    with capture(model, ["first:in", "first", "second:in", "second:out"]) as seen:
        y = model(x)
    first = model.first(x)
    assert torch.equal(seen["first:in"], x)
    assert torch.equal(seen["first"], first)  # not what the in-place ReLU made of it
    assert torch.equal(seen["second:in"], first.relu())
    assert torch.equal(model.third(seen["second:out"]), y)
    assert n_hooks(model) == 0


def test_two_spellings_of_one_point(model: nn.Module, x: Tensor) -> None:
    with capture(model, ["second", "second:out", "second"]) as seen:
        model(x)
    assert seen.keys() == {"second", "second:out"}
    assert seen["second"] is seen["second:out"]


def test_a_single_point_as_text(model: nn.Module, x: Tensor) -> None:
    with capture(model, "second") as seen:
        model(x)
    assert list(seen) == ["second"]


def test_stop_early_leaves_the_rest_unrun(model: nn.Sequential, x: Tensor) -> None:
    ran: list[str] = []
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with capture(model, ["first", "second:in"], stop_early=True) as seen:
        model(x)
        pytest.fail("the forward pass was not left")
    assert ran == ["first", "act", "second"]
    assert seen.keys() == {"first", "second:in"}


def test_nested_early_stops_end_the_right_block(model: nn.Module, x: Tensor) -> None:
    with capture(model, "first", stop_early=True) as outer:
        with capture(model, "third", stop_early=True):
            model(x)
        pytest.fail("the inner block swallowed the outer's stop")
    assert "first" in outer
    assert n_hooks(model) == 0


def test_gradients_flow_through(model: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    with capture(model, "second", stop_early=True) as seen:
        model(x)
    seen["second"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_module_that_runs_twice(x: Tensor) -> None:
    shared = nn.Linear(4, 4)
    with (
        pytest.raises(AdapterError, match="'0:out': its module ran twice"),
        capture(m := nn.Sequential(shared, shared), "0"),
    ):
        m(x)
    assert n_hooks(m) == 0


def test_point_that_is_never_reached(model: nn.Module) -> None:
    message = "never reached by a forward pass: second:out, third:in"
    with pytest.raises(AdapterError, match=message), capture(model, ["second", "third:in", "first"]):
        model.get_submodule("first")(torch.zeros(1, 4))


def test_exceptions_pass_and_hooks_go(model: nn.Module) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        capture(model, "third"),
        intervene(model, {"first": torch.neg}),
    ):
        model(torch.zeros(5, 7))
    assert n_hooks(model) == 0


class Structured(nn.Module):
    """Takes its tensor by keyword, behind another, and returns it in a structure."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Any:
        extra = "kept"
        return {
            "tuple": (None, hidden, extra),
            "list": [hidden, extra],
            "dict": {"n": 1, "hidden": hidden, "extra": extra},
            "namedtuple": Pair(hidden, extra),
            "none": (1, extra),
        }[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "namedtuple"])
def test_structures_are_kept(kind: str, x: Tensor) -> None:
    module = Structured(kind)
    with (
        intervene(module, {":in": lambda a: a + 1, ":out": lambda a: a * 2}),
        capture(module, [":in", ":out"]) as seen,
    ):
        out = module(mask=torch.zeros(1), hidden=x)  # forward's order decides, not the caller's
    assert torch.equal(seen[":in"], x + 1)
    assert torch.equal(seen[":out"], (x + 1) * 2)
    plain = module(x)
    assert type(out) is type(plain)
    values, before = (list(o.values()) if kind == "dict" else list(o) for o in (out, plain))
    assert [v for v in values if not isinstance(v, Tensor)] == [v for v in before if not isinstance(v, Tensor)]


def test_no_tensor_to_be_found(x: Tensor) -> None:
    with (
        pytest.raises(AdapterError, match="':out': returned tuple without a tensor"),
        capture(m := Structured("none"), ":out"),
    ):
        m(x)
    with pytest.raises(AdapterError, match="':in': called without a tensor"), capture(m, ":in"):
        m(hidden=None)


# Intervention


@pytest.mark.parametrize("point", ["second", "second:in", ":in", ":out"])
def test_replacing_by_itself_changes_nothing(model: nn.Module, x: Tensor, point: str) -> None:
    before = model(x)
    with intervene(model, {point: torch.clone}):
        assert torch.equal(model(x), before)


def test_replacement_reaches_what_follows(model: nn.Sequential, x: Tensor) -> None:
    with intervene(model, {"second": torch.zeros_like}):
        assert torch.equal(model(x), model.third.bias.expand(5, -1))
        assert torch.equal(model(x), model.third.bias.expand(5, -1))  # every time
    assert not torch.equal(model(x), model.third.bias.expand(5, -1))


def test_nested_interventions_apply_from_the_outermost_in(model: nn.Module, x: Tensor) -> None:
    with capture(model, "second") as seen:
        model(x)
    with (
        intervene(model, {"second": lambda a: a + 1, "second:out": lambda a: a + 2}),
        intervene(model, {"second": lambda a: a * 10}),
        capture(model, "second") as changed,
    ):
        model(x)
    torch.testing.assert_close(changed["second"], (seen["second"] + 3) * 10)


def test_gradients_flow_through_a_replacement(model: nn.Module, x: Tensor) -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    with intervene(model, {"first": lambda a: a * scale}):
        model(x).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize(
    ("replace", "error", "words"),
    [
        (lambda a: a[:1], ShapeError, r"replacement \(1, 3\) float32 cpu, expected \(5, 3\) float32 cpu"),
        (lambda a: a.double(), DtypeError, "float64"),
        (lambda a: a.to("meta"), DeviceError, "meta"),
        (lambda a: None, AdapterError, "NoneType"),
    ],
)
def test_replacements_that_do_not_fit(model: nn.Module, x: Tensor, replace: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words), intervene(model, {"second": replace}):
        model(x)
    assert n_hooks(model) == 0


def test_an_intervention_that_did_nothing_is_an_error(x: Tensor) -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    message = "never reached, so never replaced: idle:out"
    with pytest.raises(AdapterError, match=message), intervene(model, {"idle": torch.neg}):
        model(x)


def test_an_intervention_beyond_an_early_stop_is_none(model: nn.Module, x: Tensor) -> None:
    with intervene(model, {"third": torch.neg}), capture(model, "first", stop_early=True):
        model(x)
