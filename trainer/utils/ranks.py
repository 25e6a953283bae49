"""Several processes that train one model together, as torchrun starts them: which one this is, what they exchange.

A plain run is rank 0 of 1: nothing here costs it anything, and torch is imported only where there are several.
"""

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.utils.errors import ConfigError, Interrupted, ProcessLost, TrainerError, failure, listed
from trainer.utils.signals import StopSignal, end_with_parent
from trainer.utils.text import emit

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
FIRST_SPEAKS = 2.0  # seconds that other ranks wait: rank 0 prints the error, and torchrun ends all with the first exit


@dataclass(frozen=True)
class Ranks:
    """The number of this process among all (`rank`) and among those of its machine (`local`), and their total.

    Every method except the properties must be called by all ranks, at the same place, or by none.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order: tensors on the CPU and plain types, also nested."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, to_bytes(value))
        return [from_bytes(value) for value in values]

    def share(self, value: T) -> T:
        """Return the value of rank 0: tensors on the CPU and plain types, also nested."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [to_bytes(value) if self.is_first else None]
        dist.broadcast_object_list(values, src=0)
        return from_bytes(values[0])

    def highest(self, *numbers: int) -> tuple[int, ...]:
        """Return the highest of each number over all ranks."""
        if self.world == 1:
            return numbers
        import torch
        import torch.distributed as dist

        highest = torch.tensor(numbers)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return tuple(highest.tolist())

    def stacked(self, tensor: "Tensor") -> "Tensor":
        """Return a tensor (...) of each rank as (world, ...), on the device."""
        if self.world == 1:
            return tensor[None]
        import torch
        import torch.distributed as dist

        tensors = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(tensors, tensor)
        return torch.stack(tensors)

    def overwrite(self, tensors: Iterable["Tensor"]) -> None:
        """Copy the numbers of rank 0 into the tensors of all ranks."""
        if self.world > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let an error inside, on any rank, fail all ranks at the end of the block, with the same reason."""
        if self.world == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        reasons = self.gather((getattr(own, "exit_code", 1), str(own) or type(own).__name__) if own else None)
        if own is not None:
            own.agreed = True  # type: ignore[attr-defined]
            raise own
        for rank, reason in enumerate(reasons):
            if reason is not None:
                told = failure(reason[0], reason[1] if rank == 0 else f"rank {rank}: {reason[1]}")
                told.agreed = True
                raise told

    @contextmanager
    def watching(self, stop: StopSignal) -> Iterator["StopSignal | AgreedStop"]:
        """Yield the stop signal of all ranks, and turn errors that the other ranks do not have into ProcessLost."""
        if self.world == 1:
            yield stop
            return
        with stop.deferred():
            try:
                yield AgreedStop(stop, self)
            except BaseException as error:
                raise self.known(error) from error.__cause__

    def known(self, error: BaseException) -> BaseException:
        """Return the error if all ranks have it, otherwise ProcessLost with the reason of the rank that failed."""
        if self.world == 1 or getattr(error, "agreed", False):
            return error
        import torch.distributed as dist

        told = f"rank {self.rank}: {type(error).__name__}: {error}"
        is_parted = isinstance(error, RuntimeError) and ("gloo" in str(error) or isinstance(error, dist.DistError))
        if is_parted:
            told = f"another of the {self.world} processes ended, and rank {self.rank} cannot continue without it."
        own = first = f"{getattr(error, 'exit_code', 1)} {told}"
        with contextlib.suppress(RuntimeError):  # torchrun may have ended too
            # The store belongs to torchrun, so it outlives the rank that was lost.
            first = dist.distributed_c10d._get_default_store().compare_set("lost", "", own).decode()
        if first == own and not is_parted and not isinstance(error, TrainerError):  # a bug
            traceback.print_exception(error)
        code, _, text = first.partition(" ")
        lost = ProcessLost(int(code), text)
        lost.__cause__ = error
        return lost


def to_bytes(value: Any) -> bytes:
    """Return a value as torch saves it: torch.distributed's own way fails on NumPy's random state, which is uint32."""
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def from_bytes(saved: bytes) -> Any:
    """Return the value that to_bytes() was given."""
    import torch

    return torch.load(io.BytesIO(saved), weights_only=True)


class AgreedStop:
    """A StopSignal of several processes: a signal that reached one of them stops all, after the same step."""

    def __init__(self, stop: StopSignal, ranks: Ranks) -> None:
        self._stop, self._ranks = stop, ranks

    @property
    def signum(self) -> int:
        """The signal that reached this process, or 0."""
        return self._stop.signum

    def check(self) -> None:
        """Raise Interrupted on all ranks if a signal reached any of them."""
        [self._stop.signum] = self._ranks.highest(self._stop.signum)
        if self._stop.signum:
            raise Interrupted(self._stop.signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Like StopSignal.held()."""
        yield
        self.check()

    def watched(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, of which all ranks have equally many, and check for signals before each."""
        for item in items:
            self.check()
            yield item


def of_environment() -> Ranks:
    """Read torchrun's variables from the environment; rank 0 of 1 where there are none or they count one process.

    Raises:
        ConfigError: some are missing: one of several processes would train alone, and so would each of the others.
    """
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    missing = [name for name in VARIABLES if name not in found]
    if not found or (missing and found.get("WORLD_SIZE") == "1"):
        return Ranks()
    said = listed([f"{name}={value}" for name, value in found.items()])
    one = f"For a run on one process, type first: unset {' '.join(found)}"
    if missing:
        what = f"without {listed(missing)}. torchrun sets all of them"
        raise ConfigError(f"{said}, {what}: start several processes with torchrun --nproc_per_node=N. {one}")
    try:
        rank, world, local, port = (int(found[name]) for name in VARIABLES if name != "MASTER_ADDR")
        if world != 1 and not (0 <= rank < world and 0 <= local < world and 0 <= port < 2**16):
            raise ValueError
    except ValueError:
        raise ConfigError(f"{said}: not as torchrun sets them. {one}") from None
    return Ranks(rank, world, local) if world > 1 else Ranks()


@cache  # a process joins once
def join() -> Ranks:
    """Connect the ranks that torchrun started: messages go by gloo, gradients on a GPU by nccl."""
    ranks = of_environment()
    if ranks.world > 1 or "TORCHELASTIC_RUN_ID" in os.environ:  # which torchrun sets for a single process, too
        end_with_parent(saving=True)  # a killed torchrun would leave its processes running: they save and end
    if ranks.world > 1:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://"))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun keeps its store over restarts, with the addresses of processes that have ended (pytorch#135712).
            # Each machine counts restarts on its own, so this works on one machine only.
            store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world)
    return ranks


def leave(error: TrainerError | Interrupted, text: str) -> int:
    """Print why this process ends, and return its exit code. Rank 0 prints for all; the others exit after it, silently.

    torchrun ends all ranks as soon as one exits with a code other than 0.
    """
    try:
        is_first = of_environment().is_first
    except ConfigError:  # which may be the error
        is_first = True
    if is_first:
        emit(*text.split("\n"), file=sys.stderr)  # their own line ends are escaped by now
    elif error.agreed and not isinstance(error, ProcessLost):
        return 0
    elif not error.agreed:
        time.sleep(FIRST_SPEAKS)
    return error.exit_code
