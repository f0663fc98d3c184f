"""Fresh plugins for each test, so that what one registers no other sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sae_kernels as sk
from sae_kernels.plugins import Plugins, plugins


@pytest.fixture
def register() -> Iterator[Callable[..., Plugins]]:
    """register(name, hook=function, …) registers a plugin made of those functions, until the test ends."""
    names: list[str] = []

    def add(name: str, **hooks: Callable[..., Any]) -> Plugins:
        # a type each: pluggy compares plugins, and namespaces of equal content are equal
        plugin = type(name, (), {hook: staticmethod(sk.hookimpl(function)) for hook, function in hooks.items()})
        plugins().register(plugin, name)
        names.append(name)
        return plugins()

    yield add
    for name in names:
        plugins().unregister(name)
