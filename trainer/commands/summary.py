"""The summary command: the layers of a network, what they cost, and the memory that a training step takes."""

from collections.abc import Container, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer import build, data
from trainer.config.schema import BUILT, Config
from trainer.run.checkpoint import load_backbone
from trainer.run.machine import resolve_auto
from trainer.run.parts import Parts, assemble
from trainer.run.pretrained import for_fine_tuning, read_start
from trainer.run.shapes import check_images, check_plugged_parts, check_sizes, check_smallest_part, check_targets
from trainer.totals import Batch
from trainer.utils.screen import Screen, table
from trainer.utils.text import emit


@dataclass
class Layer:
    """A layer as one batch passed through it.

    Attributes:
        name: of the module in the network.
        kind: its class.
        shape: of its output, without the batch.
        parameters: that it has itself.
        multiplications: for one example.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiplications: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step needs beside the data set."""

    weights: int
    batch: int  # the inputs and labels
    kept: int  # of the forward pass for the backward pass
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.batch + self.kept + self.gradients + self.optimizer


def run_summary(config: Config) -> None:
    """Print a line for each layer and the sums; nothing is written."""
    screen = Screen()
    if "numpy" in config.impls().values():
        screen.say("impl=numpy: counted with torch's layers, since nothing can look into NumPy's")
        own = {part: replace(getattr(config, part), impl=None) for part in BUILT}
        config = replace(config, impl="concise", **own)
    parts = new_parts(config, screen)
    batch = one_batch(parts)
    layers = layers_of(parts, batch)
    rows: list[dict[str, Any]] = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "output": " x ".join(map(str, layer.shape)),
            "parameters": f"{layer.parameters:,}" if layer.parameters else "",
            "multiplications": f"{layer.multiplications:,}" if layer.multiplications else "",
        }
        for layer in layers
    ]
    trained, total = build.parameter_count(parts.model), sum(p.numel() for p in parts.model.parameters())
    said = f"{total:,}" if trained == total else f"{total:,}, of which {trained:,} are trained"
    memory = memory_of_step(parts, batch)
    count = len(batch[1])
    emit(
        f"{config.model.name} on {config.data.name}: an example is {' x '.join(map(str, parts.splits.in_shape))}",
        "",
        *table(rows),
        "",
        f"parameters       {said}",
        f"multiplications  {sum(layer.multiplications for layer in layers):,} an example, forward",
        f"training step    {megabytes(memory.total)} with batch_size={count}: {parts_said(memory)}",
        f"data set         {data_said(parts)}",
    )


def new_parts(config: Config, screen: Screen) -> Parts:
    """What a run of these settings would begin with."""
    config, machine = resolve_auto(for_fine_tuning(config, screen))
    check_images(config)
    start = read_start(config)
    parts = assemble(config, data.load(config.data, config.paths), machine)
    check_sizes(config, parts)
    check_smallest_part(config, parts)
    check_targets(config, parts.splits)
    check_plugged_parts(config, parts)
    if start is not None:
        screen.say(load_backbone(parts.model, start, parts.splits.classes))
    return parts


def one_batch(parts: Parts) -> Batch:
    """The first batch of the first epoch."""
    with closing(parts.train.epoch(1)) as batches:
        return next(batches)


def layers_of(parts: Parts, batch: Batch) -> list[Layer]:
    """The layers in the order in which they compute, each once; and modules that compute beside their layers."""
    modules = {module: name for name, module in parts.model.named_modules()}
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, y: Any) -> None:
        shapes.setdefault(module, tuple(y.shape[1:]) if isinstance(y, Tensor) else ())

    hooks = [module.register_forward_hook(note) for module in modules]
    parts.model.eval()  # the running statistics of batch normalisation stay as they are
    with counting_all() as counter, torch.no_grad(), parts.machine.autocast():
        parts.model(batch[0])
    for hook in hooks:
        hook.remove()
    counts, root = counter.get_flop_counts(), type(parts.model).__name__
    layers = []
    for module, shape in shapes.items():
        name = modules[module]
        own, flops = set(module.parameters()), flops_of(counts, root, name)
        for child in nearest_called(module, shapes):
            own -= set(child.parameters())
            flops -= flops_of(counts, root, modules[child])
        if own or flops or not any(True for _ in module.children()):
            multiplications = flops // 2 // len(batch[1])  # torch counts additions, too
            parameters = sum(p.numel() for p in own)
            layers.append(Layer(name or "(the network)", type(module).__name__, shape, parameters, multiplications))
    return layers


@contextmanager
def counting_all() -> Iterator[FlopCounterMode]:
    """Inside, operations are counted; attention is computed step by step, since its fast forms are not counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def flops_of(counts: Mapping[str, Mapping[Any, int]], root: str, name: str) -> int:
    """What was counted in a module and below it."""
    return sum(counts.get(f"{root}.{name}" if name else root, {}).values())


def nearest_called(module: nn.Module, called: Container[nn.Module]) -> Iterator[nn.Module]:
    """The nearest modules below one that were called."""
    for child in module.children():
        if child in called:
            yield child
        else:
            yield from nearest_called(child, called)


@contextmanager
def counting_kept(skip: set[int]) -> Iterator[list[int]]:
    """Inside, the bytes that the forward pass keeps for the backward pass are added up.

    Args:
        skip: the addresses of tensors that are there anyway.
    """
    total, seen = [0], set(skip)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def memory_of_step(parts: Parts, batch: Batch) -> Memory:
    """What one step on a batch needs: it is done, so that the state of the optimizer is there. Changes the weights."""
    x, y = (tensor.chunk(parts.num_parts)[0] for tensor in batch)  # the parts of a batch come one after the other
    weights = [*parts.model.parameters(), *parts.model.buffers()]
    parts = replace(parts, num_parts=1)
    with counting_kept({tensor.untyped_storage().data_ptr() for tensor in (x, y, *weights)}) as kept:
        for _ in parts.steps([(x, y)], 0, parts.totals()):
            pass
    states = [value for state in parts.optimizer.state.values() for value in state.values()]
    ema = [] if parts.update.ema is None else [*parts.update.ema.parameters()]
    return Memory(
        weights=bytes_of(*weights, *ema),
        batch=bytes_of(*batch),
        kept=kept[0],
        gradients=bytes_of(*(p.grad for p in parts.model.parameters() if p.grad is not None)),
        optimizer=bytes_of(*(value for value in states if isinstance(value, Tensor))),
    )


def bytes_of(*tensors: Tensor) -> int:
    """The bytes of some tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def megabytes(count: int) -> str:
    """Bytes as text: 12.3 MB."""
    return f"{count / 1e6:,.1f} MB"


def parts_said(memory: Memory) -> str:
    """What the memory of a step is made of."""
    shown = {
        "weights": memory.weights,
        "kept for backward": memory.kept,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "the batch": memory.batch,
    }
    return ", ".join(f"{name} {megabytes(count)}" for name, count in shown.items())


def data_said(parts: Parts) -> str:
    """Where the training examples are."""
    x = parts.train.x
    return f"{len(parts.train.y):,} training examples, " + (
        f"{megabytes(x.nbytes)} in memory" if isinstance(x, Tensor) else "streamed from disk"
    )
