"""What a checkpoint holds: one schema. A file passes it when read, a run's description before the first step.

The schema says of every field what it may be and how long, so that what comes after need not ask again.
"""

import math
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.config.ranges import OneOf, Range, Rule, Such
from trainer.config.schema import DEPTHS
from trainer.data.columns import from_plain
from trainer.run.checkpoint_files import FORMAT
from trainer.run.directory import JOB
from trainer.run.records import ANY_TEXT, NORMS, NUMBER, WHOLE, accepts, fault_of, whole_rows
from trainer.utils.errors import DamagedError
from trainer.utils.objective import DECIDING

MAX_TENSORS = 10_000  # a file with more takes over a second to read; the largest of torchvision with Adam has 6,200
MAX_PLAIN = 2**20  # bytes of what is no tensor: names of classes above all
MAX_CLASSES = 50_000
MAX_NAME = 255  # characters, as file systems have it
MAX_INPUTS = 10**8  # numbers of one example
MAX_RANKS = 4096
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)  # of weights and buffers
MAX_ENTRIES, MAX_DEPTH = 200_000, 20  # of the dicts and lists in a file; a shared one counts each time


def is_named(value: Any, leaf: Any = lambda leaf: isinstance(leaf, Tensor)) -> bool:
    """Whether this is a dict of such values by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and len(name) <= 1000 and leaf(item) for name, item in value.items()
    )


def is_plain(value: Any) -> bool:
    """Whether this is one number, text, truth value or None."""
    return value is None or isinstance(value, bool) or accepts(ANY_TEXT, value) or accepts(NUMBER, value)


def is_bytes(value: Any) -> bool:
    """Whether this is the state of one of torch's generators; torch checks what it says."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1 and value.numel() <= 10**5


def is_python_state(value: Any) -> bool:
    """Whether random.setstate can take this."""
    if not (isinstance(value, list) and len(value) == 3 and value[0] == 3 and isinstance(value[1], Tensor)):
        return False
    numbers = value[1]
    if numbers.shape != (625,) or numbers.dtype != torch.int64 or not (value[2] is None or accepts(NUMBER, value[2])):
        return False
    return bool((numbers >= 0).all() and (numbers < 2**32).all() and numbers[-1] <= 624)


def is_numpy_state(value: Any) -> bool:
    """Whether numpy.random.set_state can take this; NumPy would read at any position that it is told."""
    if not (isinstance(value, list) and len(value) == 5 and value[0] == "MT19937" and isinstance(value[1], Tensor)):
        return False
    fitting = value[1].shape == (624,) and value[1].dtype == torch.uint32
    return fitting and accepts(Range(0, 624, whole=True), value[2]) and value[3] in (0, 1) and accepts(NUMBER, value[4])


def is_list_of(rule: Rule, most: int, *, least: int = 0) -> Such:
    """Lists of such values, and not too long."""
    return Such(
        f"a list of at most {most:,} values, each {rule}",
        lambda value: (
            isinstance(value, list) and least <= len(value) <= most and all(accepts(rule, item) for item in value)
        ),
    )


DICT = Such("a dict", lambda value: isinstance(value, dict))
LABEL = Such("a name", lambda value: isinstance(value, str) and len(value) <= MAX_NAME)
SIDE = Range(1, MAX_INPUTS, whole=True)
REAL = Such("a number", lambda value: type(value) is float and math.isfinite(value))
TENSORS = Such("made of tensors by name", is_named)
BUFFERS = Such("made of tensors by name", lambda value: is_named(value, is_named))
DESCRIPTION: dict[str, Rule] = {  # what is the same in every checkpoint of a run; nodes stand before their leaves
    "format": OneOf((FORMAT,)),
    "kind": ANY_TEXT,
    "arch": DICT,
    "arch.name": ANY_TEXT,
    "arch.num_outputs": Range(1, 10**6, whole=True),
    "arch.in_shape": is_list_of(SIDE, 4, least=1),
    "classes": is_list_of(LABEL, MAX_CLASSES),
    "table?": DICT,
    "preprocess": DICT,
    "preprocess.mean": is_list_of(REAL, 1000),
    "preprocess.std": is_list_of(REAL, 1000),
    "preprocess.depth?": OneOf(DEPTHS),
    "fingerprint": ANY_TEXT,
    "config": DICT,
    "config.name": Such("a name of a run", lambda value: isinstance(value, str) and bool(JOB.fullmatch(value))),
    "data": DICT,
    "data.sha256": ANY_TEXT,
}
CHANGING: dict[str, Rule] = {
    "model": TENSORS,
    "ema?": Such("made of tensors by name", lambda value: value is None or is_named(value)),
    "optimizer": DICT,
    "optimizer.name": ANY_TEXT,
    "optimizer.state": BUFFERS,
    "scaler?": Such("numbers by name", lambda v: v is None or is_named(v, lambda n: accepts(Range(0, 1e30), n))),
    "progress": DICT,
    "progress.epoch": Range(1, 10**9, whole=True),
    "progress.step": WHOLE,
    "progress.samples?": WHOLE,
    "progress.num_correct?": WHOLE,
    "progress.loss_sum?": REAL,
    "progress.loss_sums?": is_list_of(REAL, MAX_RANKS),
    "progress.seconds?": Such("a number from 0", lambda value: accepts(REAL, value) and value >= 0),
    "progress.gradient_norms?": NORMS,
    "progress.waiting?": Such(
        "lines of metrics.jsonl", lambda text: isinstance(text, str) and not whole_rows(text)[1] and ends_whole(text)
    ),
    "early_stop": DICT,
    "early_stop.bad_epochs?": WHOLE,
    "early_stop.counted?": Such("a number, or nan before the first epoch", lambda value: type(value) is float),
    "early_stop.stopped?": ANY_TEXT,
    "best": DICT,
    "rng": Such(
        "a list of a generator's states", lambda value: isinstance(value, list) and 0 < len(value) <= MAX_RANKS
    ),
    "env": Such("plain values by name", lambda value: is_named(value, is_plain)),
}
BEST: dict[str, Rule] = {
    "metric": OneOf(DECIDING),
    "value": REAL,
    "epoch": Range(1, 10**9, whole=True),
    "step": WHOLE,
    "val_loss?": Such("a number or null", lambda value: value is None or accepts(REAL, value)),
    "val_accuracy?": Such("a number or null", lambda value: value is None or accepts(REAL, value)),
}
RNG: dict[str, Rule] = {
    "cpu": Such("a generator's state", is_bytes),
    "cuda?": Such("a generator's state", lambda value: value is None or is_bytes(value)),
    "python": Such("a generator's state", is_python_state),
    "numpy": Such("a generator's state", is_numpy_state),
}
SCHEMA = DESCRIPTION | CHANGING


def ends_whole(text: str) -> bool:
    """Whether the last line of a metrics.jsonl is whole."""
    return not text or text.endswith("\n")


def check_content(content: Any) -> None:
    """Refuse what is no content of a checkpoint.

    Raises:
        DamagedError: names the field; not the file.
    """
    refuse(fault_of(content, SCHEMA))
    check_tensors(content)
    refuse(fault_of(content["best"], BEST) if content["best"] else "", "best: ")
    for state in content["rng"]:
        refuse(fault_of(state, RNG), "rng: ")
    if odd := next((name for name, leaf in leaves_of(content["config"]) if not is_plain(leaf)), None):
        raise DamagedError(f"its config.{odd} is no plain value")
    check_relations(content)
    for weights in (content["model"], *([content["ema"]] if content.get("ema") is not None else [])):
        check_weights(weights)


def check_description(identity: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse at the start of a run what none of its checkpoints could be read with.

    Args:
        identity: what is the same in each of them.
        num_tensors: in each of them, at most.
    Raises:
        DamagedError: names the field.
    """
    refuse(fault_of(dict(identity), DESCRIPTION))
    check_relations(identity)
    size = len(pickle.dumps(dict(identity)))
    if size > MAX_PLAIN // 2:  # half of it is for the names of the tensors
        raise DamagedError(f"its description takes {size:,} bytes; allowed: {MAX_PLAIN // 2:,}")
    if num_tensors > MAX_TENSORS:
        raise DamagedError(f"a checkpoint would have {num_tensors:,} tensors; allowed: {MAX_TENSORS:,}")


def refuse(fault: str, where: str = "") -> None:
    """Raise a fault, where there is one."""
    if fault:
        raise DamagedError(f"{where}{fault}")


def check_relations(content: Mapping[str, Any]) -> None:
    """Refuse what a model's inputs and classes cannot be."""
    arch, moments, classes = content["arch"], content["preprocess"], content["classes"]
    in_shape = arch["in_shape"]
    if "table" in content:
        try:
            table = from_plain(content["table"], classes)
        except ValueError as error:
            raise DamagedError(f"its table is not how columns become inputs: {error}") from None
        if in_shape != [table.width] or (not classes and arch["num_outputs"] != 1):
            raise DamagedError(f"its table makes {table.width} inputs, and its model has {in_shape}")
    if math.prod(in_shape) > MAX_INPUTS:
        raise DamagedError(f"{in_shape} is no shape of an input")
    if classes and len(classes) != arch["num_outputs"]:
        raise DamagedError(f"it has {len(classes)} classes and {arch['num_outputs']} outputs")
    mean, std = moments["mean"], moments["std"]
    if len(mean) != len(std) or not all(n > 0 for n in std) or (mean and len(mean) != in_shape[0]):
        raise DamagedError(f"{mean[:4]}, {std[:4]} are no mean and std of its inputs")


def leaves_of(content: Any) -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts and lists that is neither, with its dotted name.

    Raises:
        DamagedError: there is no end to it; a small file can hold dicts that hold each other.
    """
    entries, todo = 0, [("", 0, content)]
    while todo:
        name, depth, node = todo.pop()
        if not isinstance(node, (Mapping, list, tuple)):
            yield name, node
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, Mapping):
            pairs = list(node.items())
        elif isinstance(node, (list, tuple)):
            pairs = list(enumerate(node))
        entries += len(pairs)
        if entries > MAX_ENTRIES or depth > MAX_DEPTH:
            raise DamagedError("its content is nested without end")
        todo += [(f"{name}.{key}" if name else str(key)[:100], depth + 1, value) for key, value in pairs]


def check_tensors(content: Any) -> None:
    """Refuse a tensor that is not plain numbers, or claims more of them than it has bytes for, wherever it is."""
    for name, tensor in leaves_of(content):
        if not isinstance(tensor, Tensor):
            continue
        kind = tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_neg()
        if kind or tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise DamagedError(f"{name} is no plain tensor, or claims more numbers than the file holds")


def is_weights(content: Any) -> bool:
    """Whether this is a bare state_dict: names with tensors."""
    return is_named(content) and bool(content)


def check_weights(weights: Mapping[str, Tensor], *, ours: bool = True) -> None:
    """Refuse weights of types that no model of ours has, or that are not finite.

    Args:
        weights: tensors by name, plain ones.
        ours: from a checkpoint of ours; else halves are allowed too, as in published weights.
    """
    for name, tensor in weights.items():
        if (ours and tensor.dtype not in DTYPES) or (tensor.is_floating_point() and tensor.element_size() < 2):
            raise DamagedError(f"{name} is of type {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DamagedError(f"{name} is not finite")
