"""The processes that `accelerate launch` or `torchrun` started together.

They work apart, so all they have to tell each other is: you may begin, and: I am through.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

__all__ = ["Processes", "started_together"]

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`: its `index`, and its `local_index` on this machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """The result of `make()`, which only the main process calls; if it raises, the others end with exit code 2 and no word."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        result: list = [None]
        try:
            if self.is_main:
                result = [(make(),)]
        finally:
            dist.broadcast_object_list(result)
        if result[0] is None:
            sys.exit(2)
        return result[0][0]

    def wait(self, meanwhile: Callable[[], None] = lambda: None, every: float = 0.5) -> None:
        """Wait until all processes have come here, calling `meanwhile` every so many seconds.

        Raises:
            ChildProcessError: another process ended without coming here.
        """
        if self.count == 1:
            return
        import torch.distributed as dist

        all_here = dist.barrier(async_op=True)
        while not all_here.is_completed():
            meanwhile()
            time.sleep(every)
        try:
            all_here.wait()
        except RuntimeError:
            raise ChildProcessError("another of the processes ended before its work was done") from None


@contextmanager
def started_together() -> Iterator[Processes]:
    """The processes of this launch; a single one without a launcher.

    `accelerate launch --cpu` starts a single process however many are asked for, which is said on stderr; the results are the same.
    """
    environment = os.environ
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        print(
            "probpose: accelerate launch --cpu starts one process, however many are asked for; torchrun --nproc-per-node COUNT -m probpose "
            "starts COUNT",
            file=sys.stderr,
        )
    index, count, local_index = (int(environment.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if count == 1:
        yield Processes()
        return
    import torch.distributed as dist

    # Waiting for the slowest process may take any time; one that has died is noticed by its closed connection.
    dist.init_process_group("gloo", timeout=timedelta(days=100))
    try:
        yield Processes(index, count, local_index)
    finally:
        dist.destroy_process_group()
