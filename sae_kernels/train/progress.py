"""The progress bar."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm import tqdm

from .run import Run


class Progress:
    """Tokens done, tokens a second, and the last logged loss, FVU, L0 and dead fraction; `place` is the bar's line."""

    def __init__(self, run: Run, shown: bool, place: int = 0) -> None:
        total = run.total_steps * run.config.training.batch_size
        label = run.directory.name or str(run.directory)
        self._bar = tqdm(
            total=total,
            initial=run.tokens,
            desc=label,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not shown,
            position=place or None,
        )

    def advance(self, tokens: int) -> None:
        """So many tokens more."""
        self._bar.update(tokens)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Figures beside the bar."""
        text = f"loss {metrics['loss']:.4g}, FVU {metrics['fvu']:.3f}, "
        text += f"L0 {metrics['l0']:.1f}, dead {metrics['dead']:.1%}"
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
