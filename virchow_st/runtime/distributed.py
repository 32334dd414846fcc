"""The processes of one job: this one alone, or those that ``torchrun`` started.

Training: every process holds the whole decoder and takes its part of each batch; sums over the
processes make losses and gradients those of the whole batch. The first process writes and reports
for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from virchow_st.errors import ConfigError, VirchowSTError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# The environment variables that torchrun sets: the fields of `Processes`, and where to meet.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_VARIABLES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")
# The longest that one may wait for another, which may be choosing genes or evaluating a fold. One
# that ends is noticed at once; this is for one that hangs.
_LONGEST_WAIT = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """A process among those of a job.

    Attributes:
        rank: its number, from 0 to ``size - 1``.
        size: processes of the job; 1 without torchrun.
        local_rank, local_size: the same among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """The process that calls, as torchrun's environment variables have it."""
        given = [os.environ.get(name) for name in _NUMBERS]
        if not all(given):
            return cls()
        return cls(*(int(value) for value in given if value))

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Which of a batch's n patches are this process's: none, where they are too few for all."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    # --- sums and agreement -------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, the same in all of them; ``values`` holds it afterwards."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(values)
        return values

    def mean(self, values: Tensor | None) -> None:
        """Replace values by their mean over the processes."""
        if self.size > 1 and values is not None:
            self.sum(values).div_(self.size)

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, given to all; a user's error ends all."""
        if self.size == 1:
            return make()
        from torch import device, distributed

        made: list[Any] = [None, None]
        if self.is_first:
            try:
                made[0] = make()
            except VirchowSTError as e:
                made[1] = e
        distributed.broadcast_object_list(made, src=0, device=device("cpu"))
        if made[1] is not None:
            raise self.error_for_rank(made[1])
        return made[0]

    def together(self, make: Callable[[], T], same: Callable[[T], Any] | None = None) -> T:
        """What ``make`` returns here; an error in any process ends all of them.

        Args:
            make: called in every process.
            same: what has to be equal in all of them, of the result.
        """
        if self.size == 1:
            return make()
        from torch import distributed

        made: Any = None
        error: VirchowSTError | None = None
        try:
            made = make()
        except VirchowSTError as e:
            error = e
        mine = error, None if error or same is None else same(made)
        all_of_them: list[Any] = [None] * self.size
        distributed.all_gather_object(all_of_them, mine)
        for rank, (their_error, theirs) in enumerate(all_of_them):
            if their_error is not None:
                where = f"process {rank} of {self.size}: " if rank else ""
                raise self.error_for_rank(type(their_error)(f"{where}{their_error}"))
            if theirs != all_of_them[0][1]:
                raise self.error_for_rank(
                    ConfigError(
                        f"process {rank} of {self.size}: its stores are not those of process 0; "
                        "give all machines the same"
                    )
                )
        return made

    def error_for_rank(self, error: VirchowSTError) -> BaseException:
        """What to raise for an error that all processes have: only the first one reports it."""
        return error if self.is_first else SystemExit(2)


ALONE = Processes()


def is_main_process() -> bool:
    """Whether this process is the one that reports to the user."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def process_group() -> Iterator[Processes]:
    """The process, connected to the others that torchrun started with it, if any.

    NCCL carries what lies on GPUs and gloo the rest; each process has to use a device of its own.

    Raises:
        ConfigError: the others cannot be reached, or only a part of what torchrun sets is there.
        VirchowSTError: another process ended while this one waited for it.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: expected what torchrun sets beside it; "
            f"{', '.join(missing)} are missing; start with torchrun, or unset WORLD_SIZE"
        )
    import torch
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as e:
        raise ConfigError(f"torchrun: the processes cannot reach each other ({e})") from None
    processes = Processes.here()
    try:
        yield processes
    except RuntimeError as e:
        if not _is_lost_connection(e):
            raise
        raise VirchowSTError(
            f"process {processes.rank} of {processes.size}: another process of the run ended; see "
            "its message for the reason; what was finished is kept, --resume continues there"
        ) from e
    distributed.destroy_process_group()  # after an error the others learn of it from the exit


def _is_lost_connection(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
