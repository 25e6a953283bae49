"""What a file of plugins= brings stands in the program's own tables for as long as a command runs.

Each entry is called there as the program's own are, and what it returns is looked at: the fault is then said to be one
of the user's file, with its line. Torch-free until there is such a file.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from trainer.config.plugin_options import plug
from trainer.config.plugins import LOADED, Entry, load_plugin, typed_in, unplug
from trainer.config.tasks import CLASSIFICATION, TASK_OF_DATA, TASKS_OF
from trainer.utils.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.data.splits import Source


@contextlib.contextmanager
def plugged(words: Sequence[str]) -> Iterator[None]:
    """Let the names of what the files of plugins= on this command line bring be chosen inside.

    Raises:
        PluginError: one of the files cannot be used.
    """
    paths = typed_in(words)
    if not paths or LOADED:  # a job in the process of its sweep
        yield
        return
    added: list[tuple[dict[str, Any], str]] = []
    try:
        for path in paths:
            entries = load_plugin(path)
            plug(path, entries)
            for entry in entries:
                for table, value in places_of(entry):
                    table[entry.name] = value
                    added.append((table, entry.name))
        yield
    finally:
        for table, name in added:
            del table[name]
        unplug()


def places_of(entry: Entry) -> list[tuple[dict[str, Any], Any]]:
    """The tables that an entry goes into, each with what stands there."""
    from trainer.build import LOSSES  # import torch
    from trainer.data import DATASETS
    from trainer.models import MODELS

    if entry.group == "data":
        return [(DATASETS, partial(read_set, entry)), (TASK_OF_DATA, entry.task)]
    both = (TASKS_OF[entry.group], tuple(dict.fromkeys(TASK_OF_DATA.values())))
    if entry.group == "model":
        return [(MODELS, partial(make_model, entry)), both]
    return [(LOSSES, partial(compute_loss, entry)), both]


def called(entry: Entry, *args: Any, **options: Any) -> Any:
    """Call what the user wrote, with lists of its own: it may change them."""
    return entry.call(*args, **{key: list(v) if isinstance(v, list) else v for key, v in options.items()})


def read_set(entry: Entry, _root: object, _cache: object, **options: Any) -> "Source":
    """The data set of an entry, as those of trainer/data return theirs; the same with every seed of a run."""
    from trainer.data.given import source_given
    from trainer.run.seeds import generators_kept, seed_everything

    with generators_kept():
        seed_everything(0)  # else a set that is drawn would be another one when the run is resumed
        returned = called(entry, **options)
    return source_given(returned, str(entry), classes=entry.task == CLASSIFICATION)


def make_model(entry: Entry, _nn: object, in_shape: tuple[int, ...], num_outputs: int, **options: Any) -> "nn.Module":
    """The model of an entry, called as those of the program are."""
    import torch

    from trainer.run.seeds import generators_kept

    def make() -> "nn.Module":
        return checked_model(entry, called(entry, in_shape, num_outputs, **options))

    if torch.get_default_device().type != "meta":
        return make()
    with torch.device("cpu"), generators_kept():  # only its shapes are asked for
        try:
            with torch.device("meta"):
                return make()
        except Exception:  # it may read a number, which tensors without memory do not have
            return make()


def checked_model(entry: Entry, model: Any) -> "nn.Module":
    """What the user's function returned, if it is a network that can be trained."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise PluginError(f"{entry}: it returns {kind_of(model)}. Allowed: a torch.nn.Module.")
    parameters = list(model.parameters())
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        raise PluginError(f"{entry}: lazy layers have no weights yet. Their sizes follow from in_shape: write them.")
    if not any(p.requires_grad for p in parameters):
        advice = "Layers are found where they are attributes of the module, such as self.fc, or in an nn.ModuleList."
        raise PluginError(f"{entry}: it has no parameters to train. {advice}")
    return model


def compute_loss(entry: Entry, y_hat: "Tensor", y: "Tensor", **options: Any) -> "Tensor":
    """The loss of an entry, which is one number."""
    from torch import Tensor

    loss = called(entry, y_hat, y, **options)
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        advice = "Allowed: a tensor of one number, the mean over the examples, such as (y_hat - y).square().mean()."
        raise PluginError(f"{entry}: it returns {kind_of(loss)}. {advice}")
    return loss


def kind_of(value: Any) -> str:
    """What something is, for a message: float32 of shape (8, 3), a tuple."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return "None" if value is None else f"a value of type {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(shape)}"
