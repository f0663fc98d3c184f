"""`token_norm`: another architecture behind a normalisation of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ConfigError
from ._base import CoderConfig, Loss, SparseCoder
from .create import coder_class

NORMS = ("layer_norm", "constant_norm")
EPS = 1e-5


@dataclass(frozen=True)
class TokenNormConfig(CoderConfig):
    """`coder`: the name of the architecture inside, an autoencoder, and `coder_config` its keys; `norm`: how each token
    is normalised."""

    coder: str
    coder_config: dict[str, Any]
    norm: Literal["layer_norm", "constant_norm"] = "layer_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("norm", NORMS)
        if not isinstance(self.coder_config, dict):
            raise ConfigError(f"coder_config = {self.coder_config!r}, expected a table of {self.coder!r}'s keys")
        if self.coder == TokenNorm.architecture:
            raise ConfigError(f"coder = {self.coder!r}, expected another architecture")
        if (inside := self.inside()).d_out != self.d_in:
            raise ConfigError(f"coder = {self.coder!r} has d_out = {inside.d_out}, expected d_in = {self.d_in}")

    def inside(self) -> CoderConfig:
        """The configuration of the coder inside."""
        sizes = {"d_in": self.d_in, "d_sae": self.d_sae, "b_dec_init": self.b_dec_init}
        return coder_class(self.coder).Config.build(**{**sizes, **self.coder_config})


class TokenNorm(SparseCoder):
    """f = encode(x̃);  x̂ = scale · reconstruct(f, x̃) + mean, each token with a mean and a scale of its own:

    - "layer_norm": x̃ = (x − mean) / (std + 1e-5), std with d − 1 in the denominator; x̂ = std · … + mean;
    - "constant_norm": x̃ = x √d / ‖x‖, mean 0; x̂ = … · ‖x‖ / √d.

    Codes and `decode` live in the normalised space; `reconstruct` and `forward` in that of x. loss: that of the coder
    inside on x̃, as OpenAI and SAELens train; its reconstruction is brought back. Only for autoencoders: a target must
    be x itself. Parameters, buffers, schedules and steps are those of the coder inside; W_enc, W_dec, … are its. It
    does not fold another normalisation.

    Source: OpenAI's sparse_autoencoder (arXiv 2406.04093), SAELens.
    """

    Config: ClassVar[type[CoderConfig]] = TokenNormConfig
    architecture: ClassVar[str] = "token_norm"
    config: TokenNormConfig
    coder: SparseCoder

    def __init__(self, config: TokenNormConfig) -> None:
        super().__init__(config)
        self.coder = coder_class(config.coder)(config.inside())
        self.unit_norm_rows = tuple(f"coder.{name}" for name in self.coder.unit_norm_rows)

    def __getattr__(self, name: str) -> Any:
        """What this has not, the coder inside has: its weights, k, θ, …"""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "coder":
                raise
            return getattr(super().__getattr__("coder"), name)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x̃, mean, scale), the last two (…, 1)."""
        x = self.check_input(x)
        if self.config.norm == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return x / scale, torch.zeros_like(scale), scale
        mean = x.mean(-1, keepdim=True)
        x = x - mean
        std = x.std(-1, keepdim=True)
        return x / (std + EPS), mean, std

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → the codes of x̃."""
        return self.coder.encode(self.statistics(x)[0])

    def decode(self, codes: SparseCodes) -> Tensor:
        """codes → (…, d_in), normalised: mean and scale are not in the codes."""
        return self.coder.decode(codes)

    def reconstruct(self, codes: SparseCodes, x: Tensor) -> Tensor:
        """The reconstruction of x, with its mean and scale."""
        inside, mean, scale = self.statistics(x)
        return self.coder.reconstruct(codes, inside) * scale + mean

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class."""
        self._check_same(x, target)
        inside, mean, scale = self.statistics(x)
        loss = self.coder.loss(inside, None, dead=dead)
        return Loss(loss.total, loss.parts, loss.codes, loss.reconstruction * scale + mean)

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """That of the coder inside, of the normalised batch."""
        self._check_same(x, target)
        inside = self.statistics(x)[0]
        self.coder.initialise(inside, inside)

    def on_step(self, step: int, total_steps: int) -> None:
        """The schedules of the coder inside."""
        self.coder.on_step(step, total_steps)

    @torch.no_grad()
    def resample(self, latents: Tensor, x: Tensor, target: Tensor, *, living: Tensor) -> None:
        """As the coder inside does it."""
        inside = self.statistics(x)[0]
        self.coder.resample(latents, inside, inside, living=living)

    def _check_same(self, x: Tensor, target: Tensor | None) -> None:
        if target is not None and target is not x and not torch.equal(target, x):
            raise ConfigError(f"{type(self).__name__}: a target other than x, expected an autoencoder's")
