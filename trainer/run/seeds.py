"""The generators of random numbers, and the seeds that everything random starts from."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trainer.config.schema import Config


def seed_everything(seed: int) -> None:
    """Seed the global generators: initial weights and dropout draw from torch's; the others are for user code."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of the process's generators, as tensors and plain types.

    Training itself draws from torch's; Python's and NumPy's are for models and data sets that use them.
    """
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.copy()), *rest],
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to a state that rng_state returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators back to where they were at the end of the block: others of this process draw from them."""
    state = rng_state(torch.device("cpu"))
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        try:
            yield
        finally:
            restore_rng(state, torch.device("cpu"))


def order_seed(config: Config) -> int:
    """What the order of the examples and their augmentation depend on."""
    own = config.data.options.get("order_seed")
    return config.seed if own is None else int(own)


def seed_of_rank(seed: int, rank: int) -> int:
    """A seed for what a rank draws by itself."""
    return int.from_bytes(hashlib.sha256(f"{seed}/rank {rank}".encode()).digest()[:8], "big") >> 1
