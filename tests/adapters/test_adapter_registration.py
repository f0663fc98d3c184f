"""The built-in adapters are registered, and their configuration tables are documented key by key."""

from __future__ import annotations

import inspect
import re

import pytest

from sae_kernels.adapters.builtin import sae_kernels_adapters
from sae_kernels.specs import Adapter, resolve

SPECS = list(sae_kernels_adapters())


def test_names() -> None:
    assert [spec.name for spec in SPECS] == ["huggingface", "tensors", "torch_module"]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_key_is_keyword_only_and_documented(spec: Adapter) -> None:
    function = resolve(spec.open)
    parameters = inspect.signature(function).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    documented = re.findall(r"^    ([a-z_, ]+): ", function.__doc__, flags=re.MULTILINE)
    assert [key for line in documented for key in line.split(", ")] == list(parameters)
