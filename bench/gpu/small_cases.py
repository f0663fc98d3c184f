"""Every op, forward and backward, on small odd sizes: what compute-sanitizer watches. Exit code 1: one of them failed.

On a GPU with the Triton kernels; `--dry-run` on the CPU with whatever backend runs there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench import cases  # noqa: E402
from bench.gpu.timing import told  # noqa: E402
from sae_kernels.kernels import OPS  # noqa: E402

ops = torch.ops.sae_kernels
SIZES = (
    cases.Size(1, 1, 1, 1),
    cases.Size(5, 3, 7, 2),
    cases.Size(37, 45, 301, 7),
    cases.Size(66, 131, 1031, 31),
    cases.Size(3, 2307, 70, 70),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def differentiated(run: Callable[..., object], *leaves: Tensor) -> None:
    """Forward, and backward to every leaf."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    out = run(*leaves)
    outputs = out if isinstance(out, (list, tuple)) else [out]
    wanted = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    torch.autograd.grad(wanted, leaves, [torch.ones_like(t) for t in wanted])


def selections(size: cases.Size, dtype: torch.dtype, on: dict[str, str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """topk and the encodes."""
    W, b, _, _ = cases.dictionary(size, dtype)
    x, k, m = cases.normal(size.n, size.d, dtype=dtype), size.k, size.d_sae
    among = [cases.everyone(), cases.some(m, 0.5)]
    theta, per_latent = torch.tensor(0.5), cases.normal(m, seed=3)
    yield "topk", lambda: differentiated(lambda z: ops.topk(z, k, **on)[0], cases.scores("nan_inf", size.n, m, dtype))
    yield (
        "linear_topk",
        lambda: differentiated(
            lambda x, W, b: ops.linear_topk(x, W, b, [k, min(m, 2 * k)], [True, False], among, **on), x, W, b
        ),
    )
    for t in (theta, per_latent):
        yield (
            "linear_threshold",
            lambda t=t: differentiated(lambda x, W, b: ops.linear_threshold(x, W, b, t, **on)[0], x, W, b),
        )
    yield (
        "linear_batch_topk",
        lambda: differentiated(lambda x, W, b: ops.linear_batch_topk(x, W, b, size.n * k, True, **on)[0], x, W, b),
    )


def products(
    size: cases.Size, dtype: torch.dtype, ragged: bool, on: dict[str, str]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What reads codes."""
    values, indices, offsets = cases.codes(size, dtype, "zipf", ragged=ragged).flat()
    X, W = cases.normal(size.n, size.d, dtype=dtype), cases.normal(size.d_sae, size.d, dtype=dtype, seed=1)
    m = size.d_sae
    yield "spmm", lambda: differentiated(lambda v, W: ops.spmm(v, indices, offsets, W, **on), values, W)
    yield "spmm_t", lambda: differentiated(lambda v, X: ops.spmm_t(v, indices, offsets, X, m, **on), values, X)
    yield "sddmm", lambda: differentiated(lambda X, W: ops.sddmm(X, W, indices, offsets, values, **on), X, W)
    yield "transpose", lambda: ops.transpose(indices, offsets, m, **on)
    prefixes = sorted({1, max(1, m // 3), m})
    yield (
        "prefix_decode",
        lambda: differentiated(lambda v, W: ops.prefix_decode(v, indices, offsets, W, prefixes, **on), values, W),
    )
    best = torch.full((m, 3), -float("inf")), torch.full((m, 3), -1, dtype=torch.int64)
    yield "latent_topn", lambda: ops.latent_topn(*best, values, indices, offsets, 5, **on)


def adam(size: cases.Size, dtype: torch.dtype, on: dict[str, str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The dense form, and rows that catch up."""
    m, d = size.d_sae, size.d
    for rows in (None, cases.permutation(m)[: max(1, m // 2)]):
        state = cases.normal(m, d, dtype=dtype), torch.zeros(m, d), torch.zeros(m, d)
        grad = cases.normal(m if rows is None else rows.numel(), d, dtype=dtype, seed=1)
        last = None if rows is None else torch.zeros(m, dtype=torch.int64)
        rates = torch.full((3,), 1e-3, dtype=torch.float64)
        yield (
            "adam_rows",
            lambda s=state, g=grad, r=rows, last=last, rates=rates: ops.adam_rows(
                *s, g, r, last, rates, 3, 0.9, 0.999, 1e-8, True, True, **on
            ),
        )


def calls(sizes: tuple[cases.Size, ...], on: dict[str, str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """(op with its size and dtype, a call)."""
    for size in sizes:
        for dtype in DTYPES:
            groups = [selections(size, dtype, on), adam(size, dtype, on)]
            groups += [products(size, dtype, ragged, on) for ragged in (False, True)]
            for group in groups:
                for op, call in group:
                    yield f"{op} {size} {str(dtype).removeprefix('torch.')}", call


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args().dry_run
    if not dry:
        torch.set_default_device("cuda")
    on = {"backend": "" if dry else "triton"}
    seen, failed = set(), []
    for name, call in calls(SIZES[:2] if dry else SIZES, on):
        seen.add(name.split()[0])
        try:
            call()
            if not dry:
                torch.cuda.synchronize()
        except Exception as error:  # the others go on: one run tells about all of them
            failed.append(f"{name}: {told(error)}")
    if missing := {op for op in OPS if not op.endswith("_backward")} - seen:  # gradients call those
        failed.append(f"ops that no case calls: {sorted(missing)}")
    print("\n".join(["failed:", *failed]) if failed else f"ok: {len(seen)} ops")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
