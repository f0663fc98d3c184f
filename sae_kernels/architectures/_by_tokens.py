"""Losses that go through the batch some tokens at a time where its codes are too full to lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import settings
from ..codes import SparseCodes
from ..kernels._cost import model
from ..kernels._cost.constants import in_force
from ._base import Loss, SparseCoder
from ._full import Full
from ._later_codes import LaterCodes
from ._sums import wide

SMALL = 1 << 16  # pairs of token and latent below which nobody looks how full the codes are
SLOTS = 8 << 20  # of codes that lie in memory at once; an eighth as many as W_enc has numbers, if that is more
CHUNK = 16 << 20  # numbers in a (tokens, d_sae) matrix of a chunk; a quarter of W_enc's, if that is more
CHUNK_ON_GPU = 128 << 20  # where a GEMM wants thousands of rows
LEAST_CHUNKS = 8  # of GEMMs: all their matrices together are no larger than one of the whole batch …
LEAST = 4 << 20  # … unless that is no more than the kernels' own scratch: few rows at a time make slow GEMMs …
FEWEST = 3  # … and even then none is as large as a matrix of the whole batch
SAMPLE = 32, 1024  # tokens and latents that tell how full codes will be
PASSES = 12  # over a chunk's matrices, between its products
GEMMS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

Parts = dict[str, Tensor]  # terms of a loss: means over tokens, 0-d, float32 at least


class Terms(NamedTuple):
    """What some tokens contribute. `acts`: their codes, or (tokens, d_sae) acts."""

    parts: Parts
    acts: SparseCodes | Tensor
    reconstruction: Tensor


class Encoder(NamedTuple):
    """Which latents are active: those with (x − minus) W_encᵀ + b_enc > theta, x (N, d_in)."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    theta: Tensor | float = 0.0
    minus: Tensor | None = None


class Plan(NamedTuple):
    """`rows` tokens at a time; `full`: in GEMMs, with acts as a matrix."""

    rows: int
    full: bool


class ByTokens(SparseCoder):
    """A coder whose loss is a mean over tokens, and may go through the batch some tokens at a time.

    `loss`: codes of no more than `SLOTS` slots lie in memory at once. Fuller ones go through in chunks of tokens, whose
    gradients are computed with them and added up: only those, the reconstruction and who fired are kept. A chunk is
    done with sparse codes, or, where so many latents are active that GEMMs are estimated to be faster (on a CPU about a
    quarter) and no backend is pinned, with its acts as a matrix of at most `CHUNK` numbers. How many are active is
    estimated from a sample of the batch.

    Memory, beside weights, their gradients and what has (tokens, d) elements: with sparse codes, that of `SLOTS` slots,
    of which an architecture says what each takes, and the weights' gradients once more; with GEMMs, two to seven
    matrices of `CHUNK` float32 (64 MiB each), or, if that is less, of an eighth of the tokens or `LEAST` (16 MiB),
    never of more than a third of the tokens.

    Of a loss in chunks, `total` can be differentiated once, with one backward. So can `reconstruction`, which goes
    through the chunks a second time for it. `codes` are `LaterCodes`.
    """

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """Of some tokens, with sparse codes."""
        raise NotImplementedError(f"{type(self).__name__} must define terms")

    @property
    def may_be_full(self) -> bool:
        """Whether `full_terms` goes with the configuration."""
        return True

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """The same with a matrix of acts. Stands for `METHODS` as they are where it is defined: of a subclass that has
        one of its own, and no `full_terms`, codes are always sparse."""
        raise NotImplementedError(f"{type(self).__name__} must define full_terms")

    def combined(self, parts: Parts) -> Tensor:
        """The loss from its terms. Adds to `parts` what follows from others."""
        raise NotImplementedError(f"{type(self).__name__} must define combined")

    def linear(self, x: Tensor, rows: int) -> Callable[[Parts], Tensor]:
        """A function that is linear in the terms and has the gradient of `combined` at this batch's."""
        return self.combined

    def encoders(self, x: Tensor) -> list[Encoder]:
        """What is encoded how: several, where layers have latents of their own."""
        raise NotImplementedError(f"{type(self).__name__} must define encoders")

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class; `dead` makes no difference."""
        return loss_by_tokens(self, x, self.check_target(x, target))


METHODS = ("terms", "encode", "decode", "reconstruct", "encoder_input")


def loss_by_tokens(coder: Any, x: Tensor, target: Tensor) -> Loss:
    """`ByTokens.loss`, of a coder that has its methods."""
    coder.check_input(x)
    plan = _plan(coder, x)
    if plan is not None:
        return _in_chunks(coder, x, target, plan)
    parts, codes, reconstruction = coder.terms(x, target)
    total = coder.combined(parts)
    return Loss(total, {name: part.detach() for name, part in parts.items()}, codes, reconstruction)


def _plan(coder: Any, x: Tensor) -> Plan | None:
    """None: all at once."""
    n, m = len(x), coder.d_sae
    if x.dim() != 2 or n * m <= SMALL or torch.compiler.is_compiling():
        return None
    encoders = coder.encoders(x.detach())
    if (dtype := _product_dtype(encoders[0])) is None:
        return None  # `encode` says what is wrong with it
    active = sum(len(encoder.W_enc) * _share(encoder, dtype) for encoder in encoders)
    slots, pairs = _limits(x, sum(encoder.W_enc.numel() for encoder in encoders))
    may = not settings.chosen_backend() and coder.may_be_full and _knows_full(type(coder))
    if may and n >= FEWEST and _gemms_pay(coder, x, dtype, active):
        return Plan(_even(n, min(min(pairs, max(LEAST, n * m // LEAST_CHUNKS)) // m, -(-n // FEWEST))), True)
    return None if n * active <= slots else Plan(_even(n, int(slots / active)), False)


def _limits(x: Tensor, weights: int) -> tuple[int, int]:
    """Slots in memory at once, and pairs of token and latent in a chunk's matrix; `weights` is W_enc's numbers."""
    pairs = CHUNK if x.device.type == "cpu" else CHUNK_ON_GPU
    return max(SLOTS, weights // 8), max(pairs, weights // 4)


def _even(total: int, most: int) -> int:
    """A size ≤ `most` of chunks alike."""
    return -(-total // -(-total // max(1, most)))


def _knows_full(kind: type) -> bool:
    def place(name: str) -> int:
        return next(i for i, each in enumerate(kind.__mro__) if name in vars(each))

    own = place("full_terms")
    return kind.__mro__[own] is not ByTokens and all(own <= place(name) for name in METHODS if hasattr(kind, name))


def _product_dtype(encoder: Encoder) -> torch.dtype | None:
    """What the products are in; None if x and W do not go together."""
    device = encoder.x.device.type
    if torch.is_autocast_enabled(device) and encoder.W_enc.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return encoder.x.dtype if encoder.x.dtype == encoder.W_enc.dtype else None


@torch.no_grad()
def _share(encoder: Encoder, dtype: torch.dtype) -> float:
    """How many of a token's latents are active, 0 … 1, by a sample that has no period."""
    x, W, b, theta, minus = encoder
    rows, latents = _spread(len(x), SAMPLE[0], x.device), _spread(len(W), SAMPLE[1], x.device)
    few = x.index_select(0, rows) if minus is None else x.index_select(0, rows) - minus
    with torch.autocast(x.device.type, enabled=False):
        z = few.to(dtype) @ W.index_select(0, latents).to(dtype).mT + b.index_select(0, latents).to(dtype)
    if isinstance(theta, Tensor):
        theta = theta.index_select(0, latents)
    return float((z > theta).float().mean())


def _spread(total: int, count: int, device: torch.device) -> Tensor:
    """`count` of `total` places by steps of the golden ratio; all, if there are no more."""
    if total <= count:
        return torch.arange(total, device=device)
    steps = torch.arange(count, dtype=torch.float64, device=device) * 0.6180339887498949
    return (steps.frac() * total).long()


def _gemms_pay(coder: Any, x: Tensor, dtype: torch.dtype, active: float) -> bool:
    """Whether GEMMs are estimated to be faster, the encoder's own left out: it is in both."""
    if dtype not in GEMMS:
        return False
    device, gemm = in_force(x.device), GEMMS[dtype]
    if gemm == "float32" and x.is_cuda and torch.get_float32_matmul_precision() != "highest":
        gemm = "tf32"
    n, m, c = len(x), coder.d_sae, device.constants
    inside, outside = (model.Sizes(n, d, m, int(n * active), dtype.itemsize, gemm) for d in (coder.d_in, coder.d_out))
    sparse = model.spmm(c, outside) + model.spmm_backward(c, outside) + model.spmm_t(c, inside)
    flops = 2.0 * n * m * (coder.d_in + 3 * coder.d_out)
    dense = 1e3 * (flops / c.gemm[gemm] + PASSES * n * m * dtype.itemsize / c.copy)
    return dense < device.margin * sparse


def _in_chunks(coder: Any, x: Tensor, target: Tensor, plan: Plan) -> Loss:
    found = _Found(coder.d_sae, x)
    parameters = [parameter for parameter in coder.parameters() if parameter.requires_grad]
    linear = coder.linear(x, plan.rows)
    objective, reconstruction = _Accumulated.apply(coder, linear, plan, found, x, target, *parameters)
    with torch.no_grad():
        value = coder.combined(found.parts)  # which `linear` need not have
    codes = LaterCodes(lambda: coder.encode(x), coder.d_sae, found.l0, found.fired, list(coder.parameters()))
    return Loss(objective + (value - objective.detach()), found.parts, codes, reconstruction)


class _Found:
    """What is known after all chunks, beside gradients."""

    def __init__(self, d_sae: int, x: Tensor) -> None:
        self.parts: Parts = {}
        self.recording = torch.is_grad_enabled()  # a Function's inputs say that they need gradients where it is not
        self.l0 = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.fired = torch.zeros(d_sae, dtype=torch.bool, device=x.device)
        self.reconstructions: list[Tensor] = []

    def take(self, part: slice, terms: Terms, weight: float) -> None:
        """One chunk."""
        for name, value in terms.parts.items():
            share = weight * value.detach()
            self.parts[name] = self.parts[name] + share if name in self.parts else share
        acts = terms.acts.detach()
        if isinstance(acts, SparseCodes):
            self.l0[part], fired = acts.l0(), acts.fired()
        else:
            self.l0[part] = torch.linalg.vector_norm(acts, 0, dim=1, dtype=wide(acts.dtype)).long()
            fired = acts.amax(0) != 0  # acts are not negative
        self.fired |= fired
        self.reconstructions.append(terms.reconstruction.detach())


class _Accumulated(torch.autograd.Function):
    """The objective of all chunks, with its gradients, which the backward has but to scale; and the reconstruction,
    whose backward, which a step of training does not ask for, computes it again."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        coder: Any,
        linear: Callable[[Parts], Tensor],
        plan: Plan,
        found: _Found,
        x: Tensor,
        target: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.wanted = tuple(needed and found.recording for needed in ctx.needs_input_grad[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, target, *parameters)
        ctx.coder, ctx.plan, ctx.backend = coder, plan, settings.chosen_backend()
        device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        objective: list[Tensor] = []

        def contribution(part: slice, terms: Terms) -> Tensor:
            weight = (part.stop - part.start) / len(x)
            mine = linear(terms.parts) * weight
            found.take(part, terms, weight)
            objective.append(mine.detach())
            return mine

        ctx.gradients = _gradients(coder, plan, (x, target, *parameters), ctx.wanted, contribution)
        return torch.stack(objective).sum(), torch.cat(found.reconstructions)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, scale: Tensor | None, of_reconstruction: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a loss that went through the batch in chunks were used: one backward")
        gradients, ctx.gradients = ctx.gradients, None
        if scale is None:
            gradients = [None] * len(gradients)
        elif scale.device.type != "cpu" or float(scale) != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        if of_reconstruction is not None:
            dy = of_reconstruction

            def contribution(part: slice, terms: Terms) -> Tensor:
                return (terms.reconstruction * dy[part]).sum()

            enabled, dtype = ctx.autocast
            with settings.use(ctx.backend), torch.autocast(dy.device.type, dtype, enabled):
                more = _gradients(ctx.coder, ctx.plan, ctx.saved_tensors, ctx.wanted, contribution)
            gradients = [b if a is None else a if b is None else a + b for a, b in zip(gradients, more, strict=True)]
        return (None, None, None, None, *gradients)


def _gradients(
    coder: Any,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    contribution: Callable[[slice, Terms], Tensor],
) -> list[Tensor | None]:
    """The gradients of the sum of what each chunk contributes, to those of the inputs (x, target, parameters) that are
    wanted."""
    x, target, *parameters = inputs
    full = Full(x.device) if plan.full else None
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, rows in enumerate((x, target)):
        if wanted[i]:
            gradients[i] = torch.empty_like(rows)
    for part in _chunks(len(x), plan.rows):
        some = x[part].detach().requires_grad_(wanted[0])
        some_target = target[part].detach().requires_grad_(wanted[1])
        with torch.set_grad_enabled(any(wanted)):
            terms = coder.terms(some, some_target) if full is None else coder.full_terms(some, some_target, full)
            mine = contribution(part, terms)
        del terms
        if any(wanted):
            _add(gradients, part, mine, (some, some_target, *parameters), wanted, full)
    return _finished(gradients, inputs, full)


def _chunks(n: int, rows: int) -> Iterator[slice]:
    return (slice(first, min(n, first + rows)) for first in range(0, n, rows))


def _add(
    gradients: list[Tensor | None],
    part: slice,
    objective: Tensor,
    inputs: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    full: Full | None,
) -> None:
    """A chunk's gradients: to its own rows of x and target, added to those of the parameters."""
    if not objective.requires_grad:
        return
    asked = [tensor for tensor, wants in zip(inputs, wanted, strict=True) if wants]
    shared = [] if full is None else full.leaves()
    with torch.autocast(objective.device.type, enabled=False):
        all_found = torch.autograd.grad(objective, [*asked, *shared], allow_unused=True)
    if full is not None:
        full.take(all_found[len(asked) :])
    found = iter(all_found)
    for i, wants in enumerate(wanted):
        gradient = next(found) if wants else None
        if i < 2:
            if wants:
                total = gradients[i]
                assert total is not None
                total[part] = 0 if gradient is None else gradient
        elif gradient is not None:
            total = gradients[i]
            gradients[i] = _own(gradient) if total is None else total.add_(gradient)


def _own(gradient: Tensor) -> Tensor:
    """To add to, in float32 at least: autograd may hand out one tensor twice, or an expanded one. Matrices come fresh
    from a kernel; to copy them would take as much memory again."""
    dtype = wide(gradient.dtype)
    fresh = gradient.dim() > 1 and gradient.is_contiguous() and gradient._base is None
    return gradient.to(dtype, copy=not fresh)


def _finished(gradients: list[Tensor | None], inputs: tuple[Tensor, ...], full: Full | None) -> list[Tensor | None]:
    """What was added up aside, too; in the inputs' dtypes."""
    wants = [tensor.requires_grad for tensor in inputs]
    asked = [tensor for tensor, each in zip(inputs, wants, strict=True) if each]
    for more in () if full is None else full.of_shared(asked):
        for i, gradient in zip([i for i, each in enumerate(wants) if each], more, strict=True):
            if gradient is not None:
                total = gradients[i]
                gradients[i] = _own(gradient) if total is None else total.add_(gradient)
    for i, (total, tensor) in enumerate(zip(gradients, inputs, strict=True)):
        if full is not None and (extra := full.gradient(tensor)) is not None:
            total = extra if total is None else extra.add_(total)
        gradients[i] = None if total is None else total.to(tensor.dtype)
    return gradients
