"""Papers' formulas in dense float32 PyTorch, for what no library here trains: nothing of this package is in them.

Each starts as its source does, or replications of it: W_dec of norm 0.1 and W_enc its transpose (Anthropic's updates of
April 2024 and January 2025), b at 0, θ at 0.1; `CrossLayer`'s weights uniform in ±1/√(latents of a layer) and
±1/√(layers · d), θ at 0.03. Adam with PyTorch's ε, gradients clipped at norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.quality.budget import CLIP, Job
from bench.quality.jumprelu import JumpReLU
from bench.quality.trainee import Scale, set_rate

NORM = 0.1
TANH = 4.0  # c of the penalty tanh(c ‖d‖ f)
PRE_ACT = 3e-6  # λ of the pre-act loss


class Paper(nn.Module):
    """A subclass has `codes`, `reconstruction` and `penalty`."""

    scale: Scale = "sqrt_d"

    def __init__(self, job: Job) -> None:
        super().__init__()
        torch.manual_seed(job.seed)
        self.job = job

    def codes(self, x: Tensor) -> Tensor:
        """f (N, d_sae)."""
        raise NotImplementedError

    def reconstruction(self, f: Tensor, x: Tensor) -> Tensor:
        """ŷ (N, d_out)."""
        raise NotImplementedError

    def penalty(self, f: Tensor, x: Tensor) -> Tensor:
        """What λ multiplies; summed over latents, averaged over tokens."""
        raise NotImplementedError

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """‖y − ŷ‖² + λ · penalty, clipped, Adam."""
        if step == 0:
            self.optimizer = torch.optim.Adam(self.parameters())
        f = self.codes(x)
        error = (y - self.reconstruction(f, x)).square().sum(1).mean()
        loss = error + self.job.ramp(step) * self.job.setting * self.penalty(f, x)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        return f.detach().bool().any(0)

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Forward."""
        f = self.codes(x)
        return f.bool().sum(1), self.reconstruction(f, x)


def rows(n: int, d: int) -> Tensor:
    """(n, d): random directions of norm `NORM`."""
    return NORM * nn.functional.normalize(torch.randn(n, d), dim=1)


class Crosscoder(Paper):
    """f = ReLU(Σ_l E^l a^l + b); â^l = f D^l + b^l; penalty Σ_i f_i Σ_l ‖d_i^l‖ (Lindsey et al. 2024)."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        d_sae, n_layers = job.budget.d_sae, job.n_layers
        parts = rows(d_sae * n_layers, job.d_in // n_layers)
        self.W_dec = nn.Parameter(parts.view(d_sae, job.d_in))
        self.W_enc = nn.Parameter(self.W_dec.detach().mT.clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(job.d_in))

    def codes(self, x: Tensor) -> Tensor:
        """ReLU."""
        return (x @ self.W_enc + self.b_enc).relu()

    def reconstruction(self, f: Tensor, x: Tensor) -> Tensor:
        """All layers side by side."""
        return f @ self.W_dec + self.b_dec

    def penalty(self, f: Tensor, x: Tensor) -> Tensor:
        """L1 of the sum of norms."""
        norms = self.W_dec.view(len(self.W_dec), self.job.n_layers, -1).norm(dim=2).sum(1)
        return (f * norms).sum(1).mean()


class Transcoder(Paper):
    """f = JumpReLU(E x + b); ŷ = f D + b; penalty Σ_i tanh(c f_i ‖d_i‖), and λ_p Σ_i ReLU(θ_i − z_i) ‖d_i‖ beside it
    (Anthropic, January 2025, which also has ε = 2 and the estimate of f's step reach z)."""

    epsilon = 2.0

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        d_sae = job.budget.d_sae
        self.W_dec = nn.Parameter(rows(d_sae, job.d_out))
        self.W_enc = nn.Parameter(rows(d_sae, job.d_in).mT.clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(job.d_out))
        self.log_theta = nn.Parameter(torch.full((d_sae,), 0.1).log())

    def pre_acts(self, x: Tensor) -> Tensor:
        """z."""
        return x @ self.W_enc + self.b_enc

    def codes(self, x: Tensor) -> Tensor:
        """JumpReLU."""
        f = JumpReLU.apply(self.pre_acts(x), self.log_theta.exp(), self.epsilon, True)
        assert isinstance(f, Tensor)
        return f

    def reconstruction(self, f: Tensor, x: Tensor) -> Tensor:
        """Without a skip."""
        return f @ self.W_dec + self.b_dec

    def penalty(self, f: Tensor, x: Tensor) -> Tensor:
        """The pre-act loss is part of it, with λ_p / λ."""
        norms = self.W_dec.norm(dim=1)
        low = ((self.log_theta.exp() - self.pre_acts(x)).relu() * norms).sum(1).mean()
        return (TANH * f * norms).tanh().sum(1).mean() + PRE_ACT / self.job.setting * low


class CrossLayer(Paper):
    """f^l = JumpReLU(E^l x^l + b^l); ŷ^l = Σ_{m ≤ l} f^m D^{m→l} + b^l; penalty Σ_i tanh(c ‖d_i‖ f_i), d_i all decoders
    of latent i side by side (Ameisen et al. 2025)."""

    def __init__(self, job: Job, epsilon: float) -> None:
        super().__init__(job)
        self.epsilon, n = epsilon, job.n_layers
        self.shape = n, job.budget.d_sae // n, job.d_in // n, job.d_out // n
        _, latents, d_in, d_out = self.shape
        self.E = nn.Parameter(torch.empty(n, d_in, latents).uniform_(-(latents**-0.5), latents**-0.5))
        self.b_enc = nn.Parameter(torch.zeros(n, 1, latents))
        self.log_theta = nn.Parameter(torch.full((n, 1, latents), 0.03).log())
        low = (n * d_out) ** -0.5
        self.D = nn.Parameter(torch.empty(n, latents, n, d_out).uniform_(-low, low))
        self.b_dec = nn.Parameter(torch.zeros(job.d_out))
        self.causal = torch.ones(n, n).triu()[:, None, :, None]  # from m to l ≥ m

    def codes(self, x: Tensor) -> Tensor:
        """Of all layers side by side."""
        n, latents, d_in, _ = self.shape
        z = x.view(len(x), n, d_in).transpose(0, 1) @ self.E + self.b_enc
        z = z.transpose(0, 1).reshape(len(x), n * latents)
        f = JumpReLU.apply(z, self.log_theta.exp().flatten(), self.epsilon, True)
        assert isinstance(f, Tensor)
        return f

    def decoders(self) -> Tensor:
        """d_i, (d_sae, d_out), 0 before the latent's own layer."""
        n, latents, _, d_out = self.shape
        return (self.D * self.causal).view(n * latents, n * d_out)

    def reconstruction(self, f: Tensor, x: Tensor) -> Tensor:
        """All layers side by side."""
        return f @ self.decoders() + self.b_dec

    def penalty(self, f: Tensor, x: Tensor) -> Tensor:
        """tanh."""
        return (TANH * f * self.decoders().norm(dim=1)).tanh().sum(1).mean()
