"""One test a hook, and a test that every hook has one, and a section in docs/plugins.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels import hookspecs, registry
from sae_kernels.cli import main
from sae_kernels.plugins import Plugins
from sae_kernels.specs import Adapter, Architecture, Command, Format, Kernel, Metric, Patch, resolve

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("sae_kernels_"))
DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_docs_section_and_a_test(hook: str) -> None:
    assert f"\n### {hook}\n" in DOCS.read_text(encoding="utf-8"), f"docs/plugins.md lacks a section for {hook}"
    assert f"test_{hook}" in globals(), f"no test_{hook} here"


def test_sae_kernels_kernels(register) -> None:
    calls: list[str] = []

    def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
        calls.append("mine")
        return W.new_full((values.shape[0], W.shape[1]), 7.0)

    def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
        return "W is too wide" if W.shape[1] > 3 else None

    register("mine", sae_kernels_kernels=lambda: [Kernel("spmm", "mine", run, why_not, priority=99)])
    codes = sk.SparseCodes(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int32), 4)
    assert sk.decode(codes, torch.ones(4, 3)).eq(7).all()
    assert calls == ["mine"]
    assert sk.decode(codes, torch.ones(4, 5)).eq(1).all()  # declined, so another ran
    assert "mine: W is too wide" in str(sk.explain("decode", codes, torch.ones(4, 5)))


class Half(sk.SparseCoder):
    """A coder that keeps one latent; enough to be created."""

    architecture = "half"

    def __init__(self, config: sk.CoderConfig) -> None:
        super().__init__(config)
        self.W_enc = nn.Parameter(torch.ones(config.d_sae, config.d_in))


def test_sae_kernels_architectures(register) -> None:
    register("halves", sae_kernels_architectures=lambda: [Architecture("half", "", Half)])
    assert isinstance(sk.create("half", d_in=2, d_sae=3), Half)


def test_sae_kernels_adapters(register) -> None:
    register("source", sae_kernels_adapters=lambda: [Adapter("mine", "", lambda *, width: width)])
    assert resolve(registry.adapters.get("mine").open)(width=3) == 3


def test_sae_kernels_formats(register, tmp_path: Path) -> None:
    coder = sk.create("topk", d_in=2, d_sae=4, k=1)
    spec = Format(
        "note",
        "",
        lambda path: path.suffix == ".note",
        lambda path: coder,
        lambda coder, path: path.write_text("saved"),
    )
    register("notes", sae_kernels_formats=lambda: [spec])
    sk.save(coder, tmp_path / "a.note", format="note")
    assert (tmp_path / "a.note").read_text() == "saved"
    assert sk.load(tmp_path / "a.note") is coder


def test_sae_kernels_patches(register) -> None:
    module = nn.Linear(2, 2, bias=False)

    def why_not(candidate: nn.Module) -> str | None:
        return None if isinstance(candidate, nn.Linear) else "not a Linear"

    def apply(target: nn.Module) -> Any:
        target.forward = lambda x: x * 0
        return lambda: delattr(target, "forward")

    register("zeroing", sae_kernels_patches=lambda: [Patch("zero", "", why_not, apply)])
    x = torch.ones(1, 2)
    before = module(x)
    with sk.patch(module) as handle:
        assert module(x).eq(0).all()
        assert sk.patch(module) is handle
    assert torch.equal(module(x), before)
    handle.undo()
    with pytest.raises(sk.errors.BackendError, match="zero: not a Linear"):
        sk.patch(nn.ReLU())


def test_sae_kernels_metrics(register) -> None:
    class Count:
        def __init__(self) -> None:
            self.n = 0

        def update(self, batch: Any) -> None:
            self.n += len(batch.x)

        def result(self) -> dict[str, float]:
            return {"rows": self.n}

    register("counting", sae_kernels_metrics=lambda: [Metric("count", "", Count)])
    metric = resolve(registry.metrics.get("count").make)()
    assert metric.result() == {"rows": 0}


def test_sae_kernels_commands(register, capsys) -> None:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--name")

    register(
        "greeting", sae_kernels_commands=lambda: [Command("greet", "", configure, lambda a: print(f"hello {a.name}"))]
    )
    assert main(["greet", "--name", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def notified(hook: str, **kwargs: Any) -> dict[str, Any]:
    """What a plugin receives when `hook` is notified; another that raises must not be in its way."""
    seen: dict[str, Any] = {}
    names = ", ".join(kwargs)
    listener = eval(f"lambda {names}: seen.update({', '.join(f'{name}={name}' for name in kwargs)})", {"seen": seen})

    def raises() -> None:
        raise OSError("full")

    own = Plugins()  # without the built-ins, which would look into `run`
    for name, function in (("raising", raises), ("listening", listener)):
        own.register(type(name, (), {hook: staticmethod(sk.hookimpl(function))}), name)
    with pytest.warns(RuntimeWarning, match=f"{hook} raised OSError: full"):
        own.notify(hook, **kwargs)
    return seen


def test_sae_kernels_train_start() -> None:
    assert notified("sae_kernels_train_start", run="run") == {"run": "run"}


def test_sae_kernels_train_step() -> None:
    sent = {"run": "run", "step": 3, "metrics": {"loss": 1.0}}
    assert notified("sae_kernels_train_step", **sent) == sent


def test_sae_kernels_checkpoint() -> None:
    sent = {"run": "run", "step": 3, "path": Path("x")}
    assert notified("sae_kernels_checkpoint", **sent) == sent


def test_sae_kernels_evaluation() -> None:
    sent = {"run": Path("x"), "results": {"l0": 3.0}}
    assert notified("sae_kernels_evaluation", **sent) == sent


def test_sae_kernels_train_end() -> None:
    sent = {"run": "run", "reason": "finished"}
    assert notified("sae_kernels_train_end", **sent) == sent
