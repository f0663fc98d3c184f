"""SAELens' SAEs and transcoders, patched against themselves."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import peer
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import BackendError
from sae_kernels.patches import builtin
from sae_kernels.patches import sae_lens as ours

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # of the host's own sparse acts
]
sae_lens = peer("sae_lens", "sae-lens")

D, M, K, N, D_OUT = 12, 96, 6, 40, 10
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "standard": ("standard_sae", "StandardSAE", {}),
    "standard outside": ("standard_sae", "StandardSAE", {"apply_b_dec_to_input": False}),
    "standard layer_norm": ("standard_sae", "StandardSAE", {"normalize_activations": "layer_norm"}),
    "standard constant": ("standard_sae", "StandardSAE", {"normalize_activations": "constant_norm_rescale"}),
    "jumprelu": ("jumprelu_sae", "JumpReLUSAE", {}),
    "gated": ("gated_sae", "GatedSAE", {}),
    "topk": ("topk_sae", "TopKSAE", {"k": K}),
    "topk rescaled": ("topk_sae", "TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "transcoder": ("transcoder", "Transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    "skip": ("transcoder", "SkipTranscoder", {"d_out": D, "apply_b_dec_to_input": False}),
    "jump transcoder": ("transcoder", "JumpReLUTranscoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    "jump skip": ("transcoder", "JumpReLUSkipTranscoder", {"d_out": D, "apply_b_dec_to_input": False}),
}
TRAINED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "train topk": ("topk_sae", "TopKTrainingSAE", {"k": K}),
    "train topk plain": ("topk_sae", "TopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}),
    "train batchtopk": ("batchtopk_sae", "BatchTopKTrainingSAE", {"k": 4.5}),
    "train batchtopk plain": (
        "batchtopk_sae",
        "BatchTopKTrainingSAE",
        {"k": 5.0, "rescale_acts_by_decoder_norm": False},
    ),
    "train matryoshka": (
        "matryoshka_batchtopk_sae",
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": 5.0, "matryoshka_widths": [10, 40, M]},
    ),
}


def made(kind: str, dtype: str = "float64", **changed: Any) -> nn.Module:
    module, name, keys = (KINDS | TRAINED)[kind]
    home = importlib.import_module(f"sae_lens.saes.{module}")
    torch.manual_seed(0)
    config = getattr(home, f"{name}Config", None) or getattr(home, name.replace("SAE", "SAE") + "Config")
    sae = getattr(home, name)(config(**{"d_in": D, "d_sae": M, "dtype": dtype, **keys, **changed}))
    with torch.no_grad():
        for key, parameter in sae.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if key == "threshold":
                parameter.uniform_(-0.2, 0.8)
    return sae


def data(*lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(lead or (N,)), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def gradients(out: Tensor, x: Tensor, sae: nn.Module) -> dict[str, Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    grads = torch.autograd.grad((out * weight).sum(), [x, *sae.parameters()], allow_unused=True)
    names = ["x", *(name for name, _ in sae.named_parameters())]
    return {name: torch.zeros(()) if grad is None else grad for name, grad in zip(names, grads, strict=True)}


def compare(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, grad in theirs.items():
        found = mine[name]
        if grad.dim() == 0 or found.dim() == 0:  # not reached: no gradient, or one of zeros
            assert float(found.abs().max()) == float(grad.abs().max()) == 0, name
            continue
        torch.testing.assert_close(found, grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_classes_that_are_listed_are_those_that_are_known() -> None:
    (spec,) = [spec for spec in builtin.sae_kernels_patches() if spec.name == "sae_lens"]
    assert spec.classes == ours.CLASSES
    for target in spec.classes:
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("lead", [(N,), (4, 10), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *TRAINED])
def test_forward_encode_decode_and_every_gradient(kind: str, lead: tuple[int, ...]) -> None:
    sae = made(kind)
    found = {}
    for who in ("theirs", "mine"):
        handle = sk.patch(sae) if who == "mine" else None
        x = data(*lead).requires_grad_()
        acts = sae.encode(x)
        decoded = sae.decode(acts)
        out = sae(data(*lead).requires_grad_())
        again = data(*lead).requires_grad_()
        found[who] = (
            acts.detach(),
            decoded.detach(),
            out.detach(),
            gradients(sae(again), again, sae),
            gradients(decoded + 0 * out.detach(), x, sae),
        )
        if handle:
            handle.undo()
    for a, b in zip(found["mine"][:3], found["theirs"][:3], strict=True):
        torch.testing.assert_close(a, b)
    compare(found["mine"][3], found["theirs"][3])
    compare(found["mine"][4], found["theirs"][4])


@pytest.mark.parametrize("dead", ["none", "some", "few"])
@pytest.mark.parametrize("kind", TRAINED)
def test_the_training_pass(kind: str, dead: str) -> None:
    from sae_lens.saes.sae import TrainStepInput

    mask = {"none": None, "some": torch.arange(M) % 3 == 0, "few": torch.arange(M) < 2}[dead]
    found = {}
    for who in ("theirs", "mine"):
        sae = made(kind)
        handle = sk.patch(sae) if who == "mine" else None
        x = data().requires_grad_()
        step = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=mask, n_training_steps=3, is_logging_step=True
        )
        output = sae.training_forward_pass(step)
        grads = torch.autograd.grad(output.loss, [x, *sae.parameters()], allow_unused=True)
        found[who] = (output, grads, dict(sae.named_buffers()))
        if handle:
            handle.undo()
    mine, theirs = found["mine"][0], found["theirs"][0]
    assert isinstance(mine, type(theirs))
    assert mine.losses.keys() == theirs.losses.keys()
    for name in theirs.losses:
        torch.testing.assert_close(mine.losses[name], theirs.losses[name])
    for field in ("loss", "sae_out", "feature_acts", "hidden_pre", "sae_in"):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field))
    assert mine.metrics.keys() == theirs.metrics.keys()
    for a, b in zip(found["mine"][1], found["theirs"][1], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found["mine"][2], found["theirs"][2])


@pytest.mark.parametrize("kind", [*KINDS, *TRAINED])
def test_hooks_keep_firing(kind: str) -> None:
    """Acts changed at a hook point reach the output; what is seen is what the host would show."""
    sae = made(kind)
    x = data()
    for point in ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_output"):
        found = {}
        for who in ("theirs", "mine"):
            seen: list[Tensor] = []

            def hook(tensor: Tensor, hook: Any, seen: list[Tensor] = seen) -> Tensor:
                seen.append(tensor.detach().clone())
                return tensor * 1.5

            handle = sk.patch(sae) if who == "mine" else None
            getattr(sae, point).add_hook(hook)
            out = sae(x)
            getattr(sae, point).remove_hooks()
            if handle:
                handle.undo()
            found[who] = [out.detach(), *seen]
        torch.testing.assert_close(found["mine"], found["theirs"])


def test_run_with_cache() -> None:
    sae = made("topk")
    out, cache = sae.run_with_cache(data())
    with sk.patch(sae):
        mine, my_cache = sae.run_with_cache(data())
    torch.testing.assert_close(mine, out)
    assert my_cache.keys() == cache.keys()
    for name in cache:
        torch.testing.assert_close(my_cache[name], cache[name])


def test_the_error_term() -> None:
    sae = made("topk")
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    with sk.patch(sae):
        torch.testing.assert_close(sae(data()), data())


@pytest.mark.parametrize("kind", ["topk", "topk rescaled", "jumprelu", "gated", "transcoder", "train topk"])
def test_acts_have_their_gradient(kind: str) -> None:
    """As attribution asks for it: of the output to the dense acts, also where they are 0."""
    sae = made(kind)
    found = []
    for patched in (False, True):
        handle = sk.patch(sae) if patched else None
        acts = sae.encode(data())
        found.append(torch.autograd.grad(sae.decode(acts).square().sum(), [acts, sae.W_dec, sae.b_dec]))
        if handle:
            handle.undo()
    torch.testing.assert_close(found[1], found[0])


def test_edited_acts_are_decoded_as_edited() -> None:
    """An ablation and a clamp, as people steer."""
    for kind in ("topk", "jumprelu", "standard"):
        sae = made(kind)
        results = []
        for patched in (False, True):
            handle = sk.patch(sae) if patched else None
            with torch.no_grad():
                acts = sae.encode(data())
                acts[:, 5] = 0.0
                acts[:, 7] += 10.0
                results.append(sae.decode(acts))
            if handle:
                handle.undo()
        torch.testing.assert_close(results[1], results[0])


def test_sparse_activations_are_torchs_where_they_were_asked_for() -> None:
    from sae_lens.saes.sae import TrainStepInput

    sae = made("train topk plain", "float32", use_sparse_activations=True)
    step = TrainStepInput(
        sae_in=data(dtype=torch.float32),
        coefficients={},
        dead_neuron_mask=None,
        n_training_steps=0,
        is_logging_step=True,
    )
    theirs = sae.training_forward_pass(step)
    with sk.patch(sae):
        mine = sae.training_forward_pass(step)
    assert mine.feature_acts.is_sparse
    torch.testing.assert_close(mine.feature_acts.to_dense(), theirs.feature_acts.to_dense())
    torch.testing.assert_close(mine.loss, theirs.loss)


@pytest.mark.parametrize("kind", ["topk", "topk rescaled", "jumprelu", "standard", "gated", "train batchtopk"])
def test_bfloat16(kind: str) -> None:
    sae = made(kind, "bfloat16")
    x = data(dtype=torch.bfloat16)
    exact = made(kind)
    exact.load_state_dict({key: value.double() for key, value in sae.state_dict().items()})
    truth, theirs = exact(x.double()).detach(), sae(x).detach()
    with sk.patch(sae):
        mine = sae(x).detach()
        assert sae.encode(x).dtype == torch.bfloat16
    assert mine.dtype == theirs.dtype
    rms = lambda tensor: float((tensor.double() - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine) <= 1.5 * rms(theirs)


def test_no_dense_tensor() -> None:
    from sae_lens.saes.sae import TrainStepInput

    n, m = 1024, 9000
    for kind in ("topk", "train topk", "train batchtopk"):
        sae = made(kind, "float32", d_sae=m, **({"use_sparse_activations": True} if kind == "train topk" else {}))
        x = torch.randn(n, D)
        with sk.patch(sae), sk.use("cpu"), NoDense(n, m):
            if kind == "train topk":
                dead = torch.arange(m) % 3 == 0
                step = TrainStepInput(
                    sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
                )
                sae.training_forward_pass(step).loss.backward()
            else:
                sae(x).square().sum().backward()


def test_a_patch_comes_and_goes(tmp_path: Any) -> None:
    sae = made("topk", "float32")
    x = data(dtype=torch.float32)
    before = sae(x)
    handle = sk.patch(sae)
    assert sk.patch(sae) is handle
    assert isinstance(sae, type(made("topk")))
    sae.to(torch.float64).to(torch.float32)
    sae.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae(x), before)
    sae.save_model(tmp_path)
    assert type(copy.deepcopy(sae)) is type(made("topk"))
    handle.undo()
    assert type(sae) is type(made("topk"))
    again = pickle.loads(pickle.dumps(sae.state_dict()))
    torch.testing.assert_close(sae_lens.SAE.load_from_disk(tmp_path)(x), before)
    assert again.keys() == sae.state_dict().keys()


def test_it_declines_what_it_does_not_know() -> None:
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D, d_sae=M))
    with pytest.raises(
        BackendError, match=r"standard_sae:StandardTrainingSAE is none of StandardSAE, .*TopKTrainingSAE"
    ):
        sk.patch(sae)
    topk = made("topk")
    topk.activation_fn = nn.Tanh()
    with pytest.raises(BackendError, match=r"activation_fn is a Tanh, expected ReLU or TopK or BatchTopK"):
        sk.patch(topk)
    assert "sae_lens" in str(sk.explain("patch", topk))


@pytest.mark.parametrize("kind", ["train topk", "train topk plain", "train batchtopk"])
def test_acts_of_the_training_pass_have_their_gradients(kind: str) -> None:
    from sae_lens.saes.sae import TrainStepInput

    sae, x = made(kind), data()
    patched = copy.deepcopy(sae)
    sk.patch(patched)
    found = []
    for each in (patched, sae):
        out = each.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
        weight = torch.randn(N, M, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        (out.loss + (out.feature_acts * weight).sum()).backward()
        found.append({name: parameter.grad for name, parameter in each.named_parameters()})
    for name, grad in found[1].items():
        torch.testing.assert_close(found[0][name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["train topk", "train batchtopk", "train matryoshka"])
def test_saelens_own_trainer(kind: str) -> None:
    """Its steps, with what it counts of the acts."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = made(kind)
    patched = copy.deepcopy(sae)
    sk.patch(patched)
    trainers = []
    for each in (patched, sae):
        config = SAETrainerConfig(total_training_samples=10 * N, train_batch_size_samples=N, lr=1e-3, lr_end=1e-4)
        trainer = SAETrainer(config, each, data_provider=iter(()))
        trainer.n_forward_passes_since_fired[::5] = 2000.0  # dead, but for those that fire
        trainers.append(trainer)
    for i in range(3):
        for trainer in trainers:
            trainer.step(data() * (1 + i))
    mine, theirs = trainers
    torch.testing.assert_close(mine.act_freq_scores, theirs.act_freq_scores)
    torch.testing.assert_close(mine.n_forward_passes_since_fired, theirs.n_forward_passes_since_fired)
    for name, parameter in theirs.sae.named_parameters():
        torch.testing.assert_close(mine.sae.get_parameter(name), parameter, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["train topk", "train batchtopk"])
def test_saelens_own_trainer_makes_nothing_dense(kind: str) -> None:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    n, d_sae = 1024, 8192
    sae = made(kind, dtype="float32", d_sae=d_sae)
    sk.patch(sae)
    config = SAETrainerConfig(total_training_samples=10 * n, train_batch_size_samples=n, lr_end=1e-4)
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    with sk.use("cpu"), NoDense(n, d_sae) as watched:
        trainer.step(data(n, dtype=torch.float32))
    assert watched.seen > 0


def test_counting_what_fired_leaves_acts_unmade() -> None:
    from sae_lens.saes.sae import TrainStepInput

    sae = made("train topk")
    sk.patch(sae)
    acts = sae.training_forward_pass(TrainStepInput(data(), {}, None, 0, False)).feature_acts
    fired = acts.bool().float()
    counts = [fired.sum(-2), fired.sum(0)]
    assert acts._made is None
    assert fired._made is None
    for count in counts:
        torch.testing.assert_close(count, (acts != 0).float().sum(0))
    for other in (lambda a: a.bool().float().sum(), lambda a: a.bool().sum(0), lambda a: a.sum(0), lambda a: a.float()):
        fresh = sae.training_forward_pass(TrainStepInput(data(), {}, None, 0, False)).feature_acts
        torch.testing.assert_close(other(fresh), other(acts.detach().clone()))
