"""Loading, isolating, blocking and listing plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sae_kernels as sk
from sae_kernels import registry
from sae_kernels.cli import main
from sae_kernels.commands.plugins import lines
from sae_kernels.errors import PluginError, UnknownNameError
from sae_kernels.plugins import BUILTINS, Plugins, plugins
from sae_kernels.specs import Architecture, Command, Kernel


def test_every_builtin_loads() -> None:
    for name in BUILTINS:
        info = plugins().infos[name]
        assert info.status == "loaded", f"{name}: {info.error}"
        assert info.hooks


def test_a_plugin_that_fails_to_import_is_reported_and_left_out() -> None:
    found = Plugins()

    def broken() -> object:
        raise ValueError("no such thing")

    found.load("broken", "somewhere", broken)
    found.load("fine", "elsewhere", lambda: SimpleNamespace())
    assert found.infos["broken"].status == "failed"
    assert found.infos["broken"].error == "ValueError: no such thing"
    assert found.infos["fine"].status == "loaded"


def test_a_misspelt_hook_is_found() -> None:
    found = Plugins()
    plugin = SimpleNamespace(sae_kernels_kernel=sk.hookimpl(lambda: []))
    with pytest.raises(PluginError, match="sae_kernels_kernel"):
        found.register(plugin, "misspelt")
    assert not found.manager.has_plugin("misspelt")


def test_a_wrong_argument_is_found() -> None:
    found = Plugins()
    plugin = SimpleNamespace(sae_kernels_train_step=sk.hookimpl(lambda run, stepp: None))
    with pytest.raises(PluginError, match="stepp"):
        found.register(plugin, "wrong")


def test_two_plugins_with_one_name() -> None:
    found = Plugins()
    found.load("same", "dist-a", lambda: SimpleNamespace())
    found.load("same", "dist-b", lambda: SimpleNamespace())
    failed = [info for info in found.infos.values() if info.status == "failed"]
    assert len(failed) == 1
    assert "dist-a" in failed[0].error
    assert "dist-b" in failed[0].error
    with pytest.raises(PluginError, match="dist-a"):
        found.register(SimpleNamespace(), "same", "by hand")


def test_blocked_plugins_are_not_imported() -> None:
    found = Plugins()

    def never() -> object:
        raise AssertionError("imported although blocked")

    found.load("x", "somewhere", never, blocked=frozenset({"x"}))
    assert found.infos["x"].status == "blocked"


def test_the_environment_variable_blocks() -> None:
    code = "from sae_kernels.plugins import plugins; print(plugins().infos['tensorboard'].status)"
    env = {"SAE_KERNELS_BLOCK": "tensorboard, other", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "blocked"


def test_one_name_from_two_plugins_is_an_error_on_use(register) -> None:
    def twice() -> list[Architecture]:
        return [Architecture("twice", "", "nowhere:Nothing")]

    register("first", sae_kernels_architectures=twice)
    register("second", sae_kernels_architectures=twice)
    with pytest.raises(PluginError, match="'first' and 'second'"):
        registry.architectures.get("twice")
    assert sk.create("topk", d_in=4, d_sae=8, k=2).d_sae == 8
    assert any("contested: architecture 'twice'" in line for line in lines())


def test_a_hook_that_raises_or_returns_rubbish_is_skipped(register) -> None:
    def raises() -> list[Kernel]:
        raise RuntimeError("boom")

    register("raising", sae_kernels_formats=raises)
    with pytest.warns(RuntimeWarning, match=r"'raising': sae_kernels_formats raised RuntimeError: boom"):
        names = registry.formats.names()
    assert "sae_kernels" in names
    register("rubbish", sae_kernels_formats=lambda: ["not a spec"])
    with pytest.warns(RuntimeWarning, match="expected Format"):
        names = registry.formats.names()
    assert "sae_kernels" in names
    assert any("boom" in line for line in lines())


def test_an_entry_point_of_an_installed_distribution_is_found(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(
        "import sae_kernels as sk\n"
        "from sae_kernels.specs import Architecture\n"
        "@sk.hookimpl\n"
        "def sae_kernels_architectures():\n"
        "    return [Architecture('stranger', 'from outside', 'stranger:Stranger')]\n"
    )
    meta = tmp_path / "stranger-1.2.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n")
    (meta / "entry_points.txt").write_text("[sae_kernels]\nstranger = stranger\nbroken = no_such_module\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from sae_kernels.cli import main; main(['plugins'])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "stranger  [loaded]  stranger 1.2 (stranger)" in done.stdout
    assert "architecture stranger" in done.stdout
    assert "broken  [failed]  stranger 1.2 (no_such_module)" in done.stdout
    assert "ModuleNotFoundError" in done.stdout


def test_a_contested_kernel_is_an_error_of_its_op_alone(register) -> None:
    register("thief", sae_kernels_kernels=lambda: [Kernel("topk", "cpu", print, print)])
    with pytest.raises(PluginError, match="kernel 'topk/cpu' is registered by 'kernels' and 'thief'"):
        sk.topk(torch.randn(2, 4), 1)
    assert sk.decode(sk.SparseCodes(torch.ones(1, 1), torch.zeros(1, 1).int(), 2), torch.ones(2, 3)).eq(1).all()


def test_a_contested_command_leaves_the_others_alone(register, capsys) -> None:
    register("thief", sae_kernels_commands=lambda: [Command("train", "", print, print)])
    assert main(["train"]) == 1
    assert "'commands' and 'thief'" in capsys.readouterr().err
    assert main(["plugins"]) == 0


def test_a_hook_without_the_decorator_is_found() -> None:
    class Forgetful:
        def sae_kernels_kernels(self) -> list[Kernel]:
            return []

    with pytest.raises(PluginError, match="sae_kernels_kernels lacks the decorator"):
        Plugins().register(Forgetful(), "forgetful")


def test_an_architecture_must_carry_the_name_it_is_registered_under(register) -> None:
    class Unnamed(sk.SparseCoder):
        pass

    register("unnamed", sae_kernels_architectures=lambda: [Architecture("mine", "", Unnamed)])
    with pytest.raises(PluginError, match=r"Unnamed.architecture is '', expected the registered name"):
        sk.create("mine", d_in=2, d_sae=3)


def test_an_unknown_name_mentions_plugins_that_failed(monkeypatch, capsys) -> None:
    def broken() -> object:
        raise ImportError("no module named stranger")

    infos = dict(plugins().infos)
    monkeypatch.setattr(plugins(), "infos", infos)
    plugins().load("stranger", "somewhere", broken)
    with pytest.raises(UnknownNameError, match="plugins that failed: stranger"):
        registry.adapters.get("strange")
    assert main(["info"]) == 0
    assert "plugin 'stranger' failed" in capsys.readouterr().err
