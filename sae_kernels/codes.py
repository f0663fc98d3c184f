"""`SparseCodes`: what every encoder returns and every consumer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import DeviceError, DtypeError, IndexRangeError, ShapeError, describe


@dataclass(frozen=True)
class SparseCodes:
    """Sparse latent activations of N rows (tokens) over `d_sae` latents.

    Shapes:
        fixed width (`offsets is None`): `values`, `indices` (…, k); the leading shape is the rows'.
        ragged: `values`, `indices` (nnz,); row n is `offsets[n]:offsets[n+1]` (CSR); `offsets` int64 (N+1,).
        `indices` int32, 0 ≤ index < d_sae. `lead` is the leading shape the N rows of a ragged code came with.

    The order inside a row has no meaning. A slot whose value is 0 is empty: it adds nothing and no gradient passes
    through it. A latent may stand in a row more than once; its values add up.

    Raises:
        ShapeError, DtypeError, DeviceError: parts that do not fit together. The range of `indices` is checked by each
        op before it reads memory, not here (that would cost a pass over them).
    """

    values: Tensor
    indices: Tensor
    d_sae: int
    offsets: Tensor | None = None
    lead: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        values, indices, offsets = self.values, self.indices, self.offsets
        if values.shape != indices.shape:
            raise ShapeError(f"codes: values {describe(values)} and indices {describe(indices)} must have one shape")
        if indices.dtype != torch.int32:
            raise DtypeError(f"codes: indices are {describe(indices)}, expected int32 (use indices.int())")
        if not values.dtype.is_floating_point:
            raise DtypeError(f"codes: values are {describe(values)}, expected a floating dtype")
        if values.device != indices.device:
            raise DeviceError(f"codes: values on {values.device}, indices on {indices.device}")
        if isinstance(self.d_sae, bool) or self.d_sae < 1:
            raise ShapeError(f"codes: d_sae is {self.d_sae}, expected a positive integer")
        if offsets is None:
            if values.dim() < 1:
                raise ShapeError("codes: fixed-width values are 0-d, expected (…, k)")
            if self.lead is not None:
                raise ShapeError("codes: `lead` belongs to ragged codes; fixed-width values carry their leading shape")
            return
        if values.dim() != 1:
            raise ShapeError(f"codes: ragged values are {describe(values)}, expected (nnz,)")
        if offsets.dim() != 1 or offsets.shape[0] < 1:
            raise ShapeError(f"codes: offsets are {describe(offsets)}, expected (N+1,)")
        if offsets.dtype != torch.int64:
            raise DtypeError(f"codes: offsets are {describe(offsets)}, expected int64")
        if offsets.device != values.device:
            raise DeviceError(f"codes: values on {values.device}, offsets on {offsets.device}")
        if self.lead is not None and math.prod(self.lead) != offsets.shape[0] - 1:
            raise ShapeError(
                f"codes: lead {self.lead} has {math.prod(self.lead)} rows, offsets have {offsets.shape[0] - 1}"
            )

    @classmethod
    def of_an_op(
        cls, values: Tensor, indices: Tensor, d_sae: int, offsets: Tensor | None, lead: tuple[int, ...] | None
    ) -> SparseCodes:
        """What an op found, which fits together: without the checks, in a quarter of their time."""
        codes = object.__new__(cls)
        codes.__dict__.update(values=values, indices=indices, d_sae=d_sae, offsets=offsets, lead=lead)
        return codes

    @property
    def is_ragged(self) -> bool:
        """Rows differ in length (CSR)."""
        return self.offsets is not None

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """The leading shape of the rows: what `decode` gives back in front of d_out."""
        if self.offsets is None:
            return tuple(self.values.shape[:-1])
        return self.lead if self.lead is not None else (self.offsets.shape[0] - 1,)

    @property
    def n_rows(self) -> int:
        """N, the number of rows."""
        return math.prod(self.lead_shape)

    def flat(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(values, indices, offsets) as the kernels take them: (N, k) twice and None, or CSR."""
        if self.offsets is not None or self.values.dim() == 2:
            return self.values, self.indices, self.offsets
        k = self.values.shape[-1]
        return self.values.reshape(self.n_rows, k), self.indices.reshape(self.n_rows, k), None

    def rows(self) -> Tensor:
        """The row of each slot, int64, in the order of `values.flatten()`."""
        device = self.values.device
        if self.offsets is None:
            return torch.arange(self.n_rows, device=device).repeat_interleave(self.values.shape[-1])
        lengths = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(lengths.shape[0], device=device), lengths)

    def l0(self) -> Tensor:
        """Active latents of each row, int64, in the rows' leading shape. Latents that stand twice count twice."""
        active = self.values != 0
        if self.offsets is None:
            return active.sum(-1)
        ends = torch.cat([active.new_zeros(1, dtype=torch.int64), active.cumsum(0)])
        return (ends[self.offsets[1:]] - ends[self.offsets[:-1]]).reshape(self.lead_shape)

    def fired(self) -> Tensor:
        """Which latents are active in any row: bool (d_sae,)."""
        mask = torch.zeros(self.d_sae, dtype=torch.bool, device=self.values.device)
        mask[self.indices[self.values != 0].long()] = True
        return mask

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same slots with other values."""
        return self if values is self.values else replace(self, values=values)

    def detach(self) -> SparseCodes:
        """Cut off from autograd."""
        return replace(self, values=self.values.detach())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseCodes:
        """On another device, or with values of another dtype."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, values=self.values.to(device, dtype), indices=self.indices.to(device), offsets=offsets)

    def dense(self) -> Tensor:
        """(…, d_sae), for inspection and tests. Takes N · d_sae values: nothing in the package calls it on real
        sizes."""
        flat = self.indices.flatten().long()
        if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= self.d_sae):
            raise IndexRangeError(
                f"codes: indices span [{int(flat.min())}, {int(flat.max())}], expected [0, {self.d_sae})"
            )
        out = self.values.new_zeros(self.n_rows, self.d_sae)
        out = out.index_put((self.rows(), flat), self.values.flatten(), accumulate=True)
        return out.reshape(*self.lead_shape, self.d_sae)

    @classmethod
    def from_dense(cls, acts: Tensor) -> SparseCodes:
        """Ragged codes of the non-zero entries of a dense (…, d_sae) tensor."""
        if acts.dim() < 1:
            raise ShapeError(f"codes: acts are {describe(acts)}, expected (…, d_sae)")
        d_sae = acts.shape[-1]
        lead = tuple(acts.shape[:-1])
        flat = acts.reshape(math.prod(lead), d_sae)
        rows, cols = flat.nonzero(as_tuple=True)
        offsets = torch.zeros(flat.shape[0] + 1, dtype=torch.int64, device=acts.device)
        offsets[1:] = (flat != 0).sum(-1).cumsum(0)
        return cls(flat[rows, cols], cols.int(), d_sae, offsets, lead)
