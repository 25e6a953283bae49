"""The optimizers of a stacked model: the formulas and their order are torch.optim's, with figures of each run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class StackedOptimizer:
    """Changes stacked parameters, each run at its own learning rate, weight decay and momentum.

    Args:
        model: the stacked model; its parameters are (K, ...).
        options: of each run's optimizer, as in configs/optimizer.
    """

    kept: tuple[str, ...] = ()  # what is kept for each parameter between steps, under torch's names
    has_step: ClassVar[bool] = False  # torch also keeps the number of steps, for each parameter

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        self.params = list(model.parameters())
        self.param_groups: list[dict[str, Any]] = [{"params": self.params}]  # the loop puts the learning rates here
        self.options, self.num_steps = options, 0
        self.buffers = [{name: torch.zeros_like(p) for name in self.kept} for p in self.params]
        decays = any(one["weight_decay"] for one in options)
        # decay_all=false spares the vectors, and a vector of each run is a matrix here
        decayed = [decays and (options[0]["decay_all"] or p.ndim > 2) for p in self.params]
        self.decay = [self.of_runs("weight_decay", p) if d else None for p, d in zip(self.params, decayed, strict=True)]

    def of_runs(self, name: str, like: Tensor) -> Tensor:
        """The runs' values of an option as a tensor (K, 1, ...) that fits a parameter."""
        return like.new_tensor([one[name] for one in self.options]).view(-1, *[1] * (like.ndim - 1))

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, at the learning rates (K,) of param_groups."""
        self.num_steps += 1
        lr: Tensor = self.param_groups[0]["lr"]
        for p, buffers, decay in zip(self.params, self.buffers, self.decay, strict=True):
            assert p.grad is not None, "every parameter takes part"
            self.update(p, p.grad, buffers, decay, lr.view(-1, *[1] * (p.ndim - 1)))

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """Change one parameter in place."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def stop(self, run: int) -> None:
        """Take a run out: from now on its numbers are zeros. Its learning rate has to be 0 too."""
        for p, buffers in zip(self.params, self.buffers, strict=True):
            for tensor in (p, *buffers.values()):
                tensor[run].zero_()

    def store(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Copy what is kept for a run into its own optimizer, in torch's form."""
        if not self.options[run].get("momentum", True):
            return  # torch keeps nothing for SGD without momentum, whatever the other runs of this stack have
        for p, buffers in zip(parameters, self.buffers, strict=True):
            step = {"step": torch.tensor(float(self.num_steps), device=p.device)} if self.has_step else {}
            optimizer.state[p] = step | {name: buffer[run].clone() for name, buffer in buffers.items()}

    def restore(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """The other way round: continue from what a checkpoint gave to a run's own optimizer."""
        for p, buffers in zip(parameters, self.buffers, strict=True):
            state = optimizer.state.get(p, {})
            for name in buffers.keys() & state.keys():
                buffers[name][run].copy_(state[name])
            self.num_steps = int(state.get("step", self.num_steps))  # the same for all runs


class StackedSGD(StackedOptimizer):
    """v = momentum v + g, w = w - lr v; with nesterov w = w - lr (g + momentum v). First g = g + weight_decay w."""

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        self.kept = ("momentum_buffer",) if any(one["momentum"] for one in options) else ()
        super().__init__(model, options)
        self.momentum = {p.ndim: self.of_runs("momentum", p) for p in self.params}  # by the number of axes

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        if decay is not None:
            g = g.addcmul(p, decay)
        if buffers:
            momentum, velocity = self.momentum[p.ndim], buffers["momentum_buffer"]
            velocity.mul_(momentum).add_(g)
            g = g.addcmul(velocity, momentum) if self.options[0]["nesterov"] else velocity
        p.addcmul_(g, lr, value=-1)


class StackedAdam(StackedOptimizer):
    """Kingma & Ba 2015, algorithm 1; first g = g + weight_decay w."""

    kept, has_step = ("exp_avg", "exp_avg_sq"), True
    is_decoupled: ClassVar[bool] = False

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        beta1, beta2 = self.options[0]["betas"]
        m, v = buffers["exp_avg"], buffers["exp_avg_sq"]
        if decay is not None and self.is_decoupled:
            p.mul_(1 - lr * decay)
        elif decay is not None:
            g = g.addcmul(p, decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**self.num_steps)).add_(self.options[0]["eps"])
        p.addcdiv_(m * lr, root, value=-1 / (1 - beta1**self.num_steps))


class StackedAdamW(StackedAdam):
    """Loshchilov & Hutter 2019: w = (1 - lr weight_decay) w comes first, apart from the gradient."""

    is_decoupled = True


STACKED_OPTIMIZERS = {"sgd": StackedSGD, "adam": StackedAdam, "adamw": StackedAdamW}
