"""torch's optimizers without what torch wraps around their methods."""

import inspect
from collections.abc import Callable
from typing import Any

import torch


def without_wrappers(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer without what torch wraps around its methods, for its compiler and its profiler.

    The wrappers for the compiler import it when an optimizer is made, which takes a second; those for the profiler take
    20 us a step, as much as the update itself. Where a torch has no such wrappers, the methods are as they were. Step
    hooks are not called. It is for torch's own optimizers, whose methods have no other wrappers.
    """
    names = ("__init__", "step", "add_param_group", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])  # one of the wrappers did that too
    methods["step"].hooked = True  # else torch wraps it again
    methods["zero_grad"] = zero_grad
    return type(optimizer.__name__, (optimizer,), methods)


def zero_grad(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # not zeros: the next backward then writes instead of adding
