"""What users of SAELens do first, with patched SAEs: hooked transformers, compiling, its trainer from start to end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.peer import D, all_close, data, peer, plain_and_patched
from support.peer_sae_lens import made, own_trainer
from torch import Tensor

import sae_kernels as sk

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # the hosts' own
]
sae_lens = peer("sae_lens", "sae-lens")
HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def model() -> Any:
    lens = peer("transformer_lens", "transformer-lens")
    shape = {"n_layers": 2, "d_model": D, "n_ctx": 16, "d_head": 6, "n_heads": 2, "d_vocab": 30, "act_fn": "relu"}
    return sae_lens.HookedSAETransformer(lens.HookedTransformerConfig(**shape, seed=0))


@pytest.mark.parametrize("error_term", [False, True], ids=["", "error term"])
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "gated", "train standard"])
def test_in_a_hooked_transformer(kind: str, error_term: bool, model: Any) -> None:
    """Runs, caches, an ablation by a hook, and attribution to acts."""
    sae = made(kind, "float32")
    sae.cfg.metadata.hook_name = HOOK
    tokens = torch.arange(20).view(2, 10)
    point = f"{HOOK}.hook_sae_acts_post"

    def ablated(acts: Tensor, hook: Any) -> Tensor:
        acts[:, :, 3] = 0
        return acts

    def run() -> dict[str, Tensor]:
        found = {"plain": model.run_with_saes(tokens, saes=[sae], use_error_term=error_term)}
        found["cached"], cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=error_term)
        found |= {name: cache[name] for name in cache if "hook_sae" in name}
        found["ablated"] = model.run_with_hooks_with_saes(tokens, saes=[sae], fwd_hooks=[(point, ablated)])
        kept: list[Tensor] = []

        def keep(acts: Tensor, hook: Any) -> None:
            acts.retain_grad()
            kept.append(acts)

        model.add_sae(sae, use_error_term=error_term)
        with model.hooks(fwd_hooks=[(point, keep)]):
            model(tokens)[0, -1, 5].backward()
        model.reset_saes()
        assert kept[0].grad is not None
        found["attribution"] = kept[0].grad
        return found

    theirs, mine = plain_and_patched(sae, run)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


COMPILED = """
import sys
sys.path += {folders!r}
import torch
from support.peer import all_close, data
from support.peer_sae_lens import made, step_input
import sae_kernels as sk

x = data(dtype=torch.float32)
for kind in ("jumprelu", "train standard"):
    sae = made(kind, "float32")
    weights = [sae.W_dec, sae.W_enc]

    def run(wrapped):
        out = wrapped(sae)(x)
        found = [out, *torch.autograd.grad(out.square().sum(), weights)]
        if kind.startswith("train"):
            output = wrapped(sae.training_forward_pass)(step_input(x))
            found += [output.loss, *torch.autograd.grad(output.loss, weights), +output.feature_acts, +output.hidden_pre]
        return found

    expected = run(lambda call: call)
    with sk.patch(sae):
        found = run(lambda call: torch.compile(call, backend="eager"))
    all_close(found, expected, rtol=1e-4, atol=1e-4)
print("same")
"""


@pytest.mark.slow
def test_compiled() -> None:
    """Graphs may break; results and gradients stay. In a process without nnsight, which dictionary_learning imports and
    which changes what the compiler traces with."""
    tests = Path(__file__).parent.parent
    script = COMPILED.format(folders=[str(tests), str(tests.parent)])
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["same"], done.stderr[-3000:]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("train standard", {"l1_coefficient": 0.5, "normalize_activations": "expected_average_only_in"}),
        ("train gated", {"l1_coefficient": 0.5, "l1_warm_up_steps": 10}),
        ("train jumprelu", {"l0_coefficient": 0.1, "normalize_activations": "covariance_whitening"}),
        ("train batchtopk plain", {}),
    ],
)
def test_its_trainer_from_start_to_end(kind: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """Scaling estimated and folded in, coefficients warmed up, checkpoints, an inference model."""

    def batches() -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(5)
        directions = torch.randn(32, D, generator=random)
        while True:
            amounts = torch.rand(256, 32, generator=random) * (torch.rand(256, 32, generator=random) < 0.1)
            yield (amounts @ directions).double()

    def fitted(patched: bool) -> list[Tensor]:
        folder = tmp_path / str(patched)
        sae = made(kind, **keys)
        handle = sk.patch(sae) if patched else None
        settings = {"checkpoint_path": str(folder), "n_checkpoints": 1, "save_final_checkpoint": True}
        trainer = own_trainer(sae, 256, total_training_samples=256 * 30, dead_feature_window=10, **settings)
        trainer.cfg.logger.log_to_wandb = False
        trainer.data_provider = batches()
        trained = trainer.fit()
        trained.save_inference_model(folder / "inference")
        x = next(batches())
        results = [*trained.parameters(), trainer.act_freq_scores, trainer.n_forward_passes_since_fired]
        results.append(sae_lens.SAE.load_from_disk(folder / "inference")(x))
        results.append(sae_lens.TrainingSAE.load_from_disk(next(folder.glob("final_*")))(x))
        if handle:
            handle.undo()
        return [each.detach() for each in results]

    all_close(fitted(True), fitted(False), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_with_the_environment_variable() -> None:
    """Not a line of a script touched."""
    script = """
import torch
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
print(hasattr(type(StandardTrainingSAE(StandardTrainingSAEConfig(d_in=16, d_sae=128))), "_sae_kernels_host"))
"""
    path = Path(sk.__file__).parent / "patches" / "startup"  # where an editable install has no .pth
    environment = {**os.environ, "SAE_KERNELS_PATCH": "sae_lens"}
    environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-c", "import _sae_kernels_startup" + script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split()[-1:] == ["True"], done.stderr[-3000:]


def test_a_patched_sae_in_bfloat16_and_back() -> None:
    sae = made("train standard", "float32")
    x = data(dtype=torch.float32)
    with sk.patch(sae):
        sae.to(torch.bfloat16)
        assert sae(x).dtype == torch.bfloat16
        sae.to(dtype=torch.float32)
        assert sae.cfg.dtype == "float32"
        mine = sae(x)
    torch.testing.assert_close(sae(x), mine)
