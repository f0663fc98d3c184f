"""Several runs, a step of each in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

from ..errors import TrainingError
from .run import Run


def lockstep(members: Sequence[tuple[Run, Generator[None]]]) -> None:
    """Exhaust the iterators, each `next` a step of its run under that run's random states. Who is behind goes first,
    so that runs resumed at different steps come together and then ask for the same data.

    A TrainingError ends its own run; the others go on, and it is raised at the end (several: as one that names them).
    Anything else ends all: each iterator has the exception thrown into it.
    """
    if len(members) == 1:  # nobody to change places with
        ((run, steps),) = members
        with run.random:
            for _ in steps:
                pass
        return
    going = list(members)
    failed: list[tuple[Run, TrainingError]] = []
    while going:
        least = min(run.step for run, _ in going)
        for member in [each for each in going if each[0].step == least]:
            run, steps = member
            try:
                with run.random:
                    next(steps)
            except StopIteration:
                going.remove(member)
            except TrainingError as error:
                going.remove(member)
                failed.append((run, error))
            except BaseException as error:
                for other, rest in going:
                    if rest is not steps:
                        with contextlib.suppress(BaseException), other.random:
                            rest.throw(error)
                raise
    if failed:
        lines = "\n".join(f"  {run.directory}: {error}" for run, error in failed)
        raise TrainingError(f"{len(failed)} of {len(members)} runs failed, the others finished\n{lines}")
