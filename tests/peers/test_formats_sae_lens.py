"""SAELens's files: ours loaded by SAELens and its own loaded here compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.peer import peer
from torch import nn

import sae_kernels as sk
from bench import cases
from sae_kernels.errors import FormatError

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]
sae_lens = peer("sae_lens", "sae-lens")

D, D_OUT, N, K, ROWS = 12, 9, 48, 5, 64
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
THEIRS = {
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": K},
    "transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
}


def shaken(module: nn.Module) -> nn.Module:
    """With weights that no initialisation has."""
    with torch.no_grad():
        for i, (name, p) in enumerate(module.named_parameters()):
            new = cases.normal(*p.shape, seed=30 + i, scale=0.4)
            p.copy_(new.abs() if "thresh" in name else new)
    return module


def theirs(architecture: str, **own: Any) -> Any:
    config = {"d_in": D, "d_sae": N, "architecture": architecture, **THEIRS[architecture], **own}
    return shaken(sae_lens.registry.get_sae_class(architecture)[0].from_dict(config)).eval()


def x_rows(*lead: int) -> torch.Tensor:
    return cases.normal(*(lead or (ROWS,)), D, seed=3)


def compare(mine: sk.SparseCoder, host: Any, tolerance: dict[str, float] = TOLERANCE) -> None:
    for x in (x_rows(), x_rows(3, 7)):
        x = x.to(mine.b_dec.dtype)
        torch.testing.assert_close(mine.encode(x).dense(), host.encode(x), **tolerance)
        torch.testing.assert_close(mine(x), host(x), **tolerance)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", THEIRS)
def test_there_and_back(tmp_path: Path, architecture: str, subtract: bool) -> None:
    own = {} if "transcoder" in architecture else {"apply_b_dec_to_input": subtract}
    host = theirs(architecture, **own)
    host.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    host.save_model(tmp_path / "theirs")
    mine = sk.load(tmp_path / "theirs")
    compare(mine, host)
    assert mine.metadata["hook_name"] == "blocks.3.hook_resid_post"
    sk.save(mine, tmp_path / "ours", format="sae_lens")
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert type(again) is type(host)
    assert again.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    compare(mine, again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_dtypes(tmp_path: Path, architecture: str, dtype: str) -> None:
    host = theirs(architecture, apply_b_dec_to_input=False).to(getattr(torch, dtype))
    host.save_model(tmp_path / "theirs")
    mine = sk.load(tmp_path / "theirs")
    x = x_rows().to(mine.b_dec.dtype)
    exact = theirs(architecture, apply_b_dec_to_input=False).double()
    exact.load_state_dict({name: t.double() for name, t in host.state_dict().items()})
    truth = exact(x.double())
    ours, their = ((out.double() - truth).abs().max() for out in (mine(x).detach(), host(x)))
    assert float(ours) <= 2 * float(their) + 1e-9 or float(ours) < 0.15 * float(truth.abs().max())
    sk.save(mine, tmp_path / "ours", format="sae_lens")
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    torch.testing.assert_close(again(x), host(x))


def test_norms_in_the_choice(tmp_path: Path) -> None:
    host = theirs("topk", rescale_acts_by_decoder_norm=True)
    host.save_model(tmp_path / "theirs")
    compare(sk.load(tmp_path / "theirs"), host, {"atol": 5e-5, "rtol": 5e-5})


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_training_coders(tmp_path: Path, architecture: str) -> None:
    """In training the k·N largest, as there; in eval mode what SAELens's own inference file computes."""
    own = {"matryoshka_widths": [12, 24, N]} if architecture.startswith("m") else {}
    config = {"d_in": D, "d_sae": N, "k": K, "rescale_acts_by_decoder_norm": False, **own}
    cls, config_cls = sae_lens.registry.get_sae_training_class(architecture)
    host = shaken(cls(config_cls(**config)))
    host.topk_threshold.fill_(0.4)
    host.save_model(tmp_path / "theirs")
    host.save_inference_model(tmp_path / "inference")
    mine, read = sk.load(tmp_path / "theirs"), sk.load(tmp_path / "inference")
    served = sae_lens.SAE.load_from_disk(tmp_path / "inference").eval()
    compare(mine, served)
    compare(read, served)
    x = x_rows()
    mine.train()
    torch.testing.assert_close(mine.encode(x).dense(), host.encode(x), **TOLERANCE)
    torch.testing.assert_close(mine(x), host(x), **TOLERANCE)
    mine.eval()
    sk.save(mine, tmp_path / "ours", format="sae_lens")
    compare(mine, sae_lens.SAE.load_from_disk(tmp_path / "ours"))


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_normalisation_of_each_token_is_honoured_or_refused(tmp_path: Path, how: str) -> None:
    host = theirs("standard", normalize_activations=how)
    host.save_model(tmp_path / "theirs")
    try:
        mine = sk.load(tmp_path / "theirs")
    except FormatError as error:
        assert f"normalize_activations = '{how}'" in str(error)  # noqa: PT017
    else:
        compare(mine, host)


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "topk", "transcoder", "jumprelu_transcoder"])
def test_ours_in_theirs(tmp_path: Path, architecture: str) -> None:
    own = {"k": K} if architecture == "topk" else {"sparsity_coefficient": 1.0}
    if architecture == "transcoder":
        own["activation"] = "relu"
    if "transcoder" in architecture:
        own.update(skip=True, d_target=D_OUT)
    mine = shaken(sk.create(architecture, d_in=D, d_sae=N, **own)).eval()
    sk.save(mine, tmp_path / "ours", format="sae_lens")
    compare(mine, sae_lens.SAE.load_from_disk(tmp_path / "ours"))
