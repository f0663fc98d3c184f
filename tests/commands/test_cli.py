"""The command line: help, exit codes, one clear line on bad input, a traceback only with --debug."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sae_kernels import registry
from sae_kernels.cli import main
from sae_kernels.errors import ConfigError
from sae_kernels.specs import Command


@pytest.mark.parametrize("name", registry.commands.names())
def test_every_command_has_help_with_an_example(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"sae-kernels {name}" in capsys.readouterr().out.split("example:")[1]


def test_an_unknown_command_is_wrong_usage(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_bad_input_is_one_line_and_a_failure(tmp_path: Path, capsys) -> None:
    config = tmp_path / "x.toml"
    config.write_text('[activations]\nadapter = "huggingfase"\n[coder]\n[training]\n[output]\ndir = "x"\n')
    assert main(["train", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "huggingfase" in error
    assert "huggingface" in error
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_debug_shows_the_traceback(register_command, capsys) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise ConfigError("too blue")

    register_command("failing", fail)
    assert main(["failing"]) == 1
    assert capsys.readouterr().err == "sae-kernels failing: too blue\n"
    assert main(["failing", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption_has_its_own_exit_code(register_command, capsys) -> None:
    def interrupted(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    register_command("slow", interrupted)
    assert main(["slow"]) == 130
    assert capsys.readouterr().err == "sae-kernels slow: interrupted\n"


def test_a_command_that_cannot_be_set_up_leaves_the_others_alone(register_command, capsys) -> None:
    def broken(parser: argparse.ArgumentParser) -> None:
        raise ImportError("no such module")

    register_command("broken", print, configure=broken)
    assert main(["plugins"]) == 0
    assert main(["broken"]) == 1
    assert "no such module" in capsys.readouterr().err


def test_info_says_what_a_bug_report_needs(capsys) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in ("sae-kernels", "torch", "instruction set:", "GPU:", "backends:", "SAE_KERNELS_ISA", "plugins:"):
        assert word in shown


def test_bench_compares_and_prints_ratios(capsys, monkeypatch) -> None:
    from sae_kernels.commands import bench

    monkeypatch.setitem(bench.SIZES, "small", (64, 16, 256, 4))
    assert main(["bench", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "embedding_bag" in shown
    assert shown.count("x\n") == 3
    assert main(["bench", "--rounds", "0"]) == 1


@pytest.fixture
def register_command():
    """register_command(name, run, configure=…), until the test ends."""
    import sae_kernels as sk
    from sae_kernels.plugins import plugins

    names = []

    def add(name: str, run, configure=lambda parser: None) -> None:
        hook = sk.hookimpl(lambda: [Command(name, "", configure, run)])
        plugins().register(type(name, (), {"sae_kernels_commands": staticmethod(hook)}), name)
        names.append(name)

    yield add
    for name in names:
        plugins().unregister(name)
