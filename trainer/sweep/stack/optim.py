"""The optimizers of a stacked model: the formulas and their order are torch.optim's, with figures of each run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class StackedOptimizer:
    """Changes stacked parameters, each run with its own figures; the formulas and their order are torch.optim's.

    Args:
        model: the stacked model; its parameters are (K, ...).
        options: of each run's optimizer, as in configs/optimizer.
    """

    kept: ClassVar[tuple[str, ...]]  # what is kept for each parameter between steps, under torch's names

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        self.params = list(model.parameters())
        self.param_groups: list[dict[str, Any]] = [{"params": self.params}]  # the loop puts the learning rates here
        self.options = options[0]  # for what is the same in all runs
        self.num_steps = 0
        self.buffers = [{name: torch.zeros_like(p) for name in self.kept_by(options)} for p in self.params]
        self.decays = any(one["weight_decay"] for one in options)
        self.decay: list[Tensor | None] = []
        for p in self.params:
            is_decayed = self.decays and (self.options["decay_all"] or p.ndim > 2)  # a vector of each run is 2-d here
            self.decay.append(self.of_runs("weight_decay", options, p) if is_decayed else None)

    def kept_by(self, options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The names of the buffers that runs with these options need."""
        return self.kept

    def of_runs(self, name: str, options: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
        """The runs' values of an option as a tensor (K, 1, ...) that fits a parameter."""
        return like.new_tensor([one[name] for one in options]).view(-1, *[1] * (like.ndim - 1))

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

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Copy what is kept for a run into its own optimizer, in torch's form."""
        for p, buffers in zip(parameters, self.buffers, strict=True):
            optimizer.state[p] = {name: buffer[run].clone() for name, buffer in buffers.items()}

    def take(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """The other way round: go on from what a run's own optimizer was given by a checkpoint."""
        for p, buffers in zip(parameters, self.buffers, strict=True):
            for name, buffer in buffers.items():
                if name in optimizer.state.get(p, {}):
                    buffer[run].copy_(optimizer.state[p][name])


class StackedSGD(StackedOptimizer):
    """v = momentum v + g, w = w - lr v; with nesterov w = w - lr (g + momentum v). First g = g + weight_decay w."""

    kept = ("momentum_buffer",)

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(model, options)
        self.has_momentum = [bool(one["momentum"]) for one in options]
        shapes = {p.ndim: self.of_runs("momentum", options, p) for p in self.params}
        self.momentum = shapes if any(self.has_momentum) else {}  # by the number of axes

    def kept_by(self, options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Without momentum nothing is kept."""
        return self.kept if any(one["momentum"] for one in options) else ()

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        if decay is not None:
            g = g.addcmul(p, decay)
        if buffers:
            momentum, velocity = self.momentum[p.ndim], buffers["momentum_buffer"]
            velocity.mul_(momentum).add_(g)
            g = g.addcmul(velocity, momentum) if self.options["nesterov"] else velocity
        p.addcmul_(g, lr, value=-1)

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """A run without momentum keeps nothing, whatever the others do."""
        if self.has_momentum[run]:
            super().give(run, optimizer, parameters)


class StackedAdam(StackedOptimizer):
    """Kingma & Ba 2015, algorithm 1; first g = g + weight_decay w."""

    kept = ("exp_avg", "exp_avg_sq")
    is_decoupled = False

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        beta1, beta2 = self.options["betas"]
        m, v = buffers["exp_avg"], buffers["exp_avg_sq"]
        if decay is not None and self.is_decoupled:
            p.mul_(1 - lr * decay)
        elif decay is not None:
            g = g.addcmul(p, decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**self.num_steps)).add_(self.options["eps"])
        p.addcdiv_(m * lr, root, value=-1 / (1 - beta1**self.num_steps))

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """With the number of steps, which torch keeps for each parameter."""
        super().give(run, optimizer, parameters)
        for p in parameters:
            step = torch.tensor(float(self.num_steps), device=p.device)
            optimizer.state[p] = {"step": step, **optimizer.state[p]}

    def take(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """With the number of steps, which is the same for all runs."""
        super().take(run, optimizer, parameters)
        self.num_steps = int(optimizer.state.get(parameters[0], {}).get("step", 0))


class StackedAdamW(StackedAdam):
    """Loshchilov & Hutter 2019: w = (1 - lr weight_decay) w comes first, apart from the gradient."""

    is_decoupled = True


STACKED_OPTIMIZERS = {"sgd": StackedSGD, "adam": StackedAdam, "adamw": StackedAdamW}
