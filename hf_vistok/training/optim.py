"""AdamW and Muon in one optimizer, learning-rate schedules as functions of the step, moving averages of weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import OptimizerRecipe
from .sharding import part_like

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration of Muon's authors


def orthogonalize(matrices: Tensor, steps: int, half: bool = False) -> Tensor:
    """
    Pushes the singular values of matrices towards 1 by Newton-Schulz iterations.

    Args:
        matrices: `(K, rows, columns)`.
        steps: iterations; 3 to 5.
        half: products in bfloat16, as on GPUs.

    Returns:
        the same shape, float32.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if half or matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class MuonAdamW(torch.optim.Optimizer):
    """
    AdamW for vectors, embeddings and outer layers; Muon (momentum, then orthogonalised) for inner matrices.

    Args:
        groups: parameter groups; `algorithm` is "adamw" or "muon", and `base_lr` the peak learning rate.
        recipe: the other settings.

    `half_products` makes Muon multiply in bfloat16, for CPUs that have units for it.
    """

    def __init__(self, groups: list[dict[str, Any]], recipe: OptimizerRecipe) -> None:
        self.recipe, self.half_products = recipe, False
        super().__init__(groups, {"lr": 0.0, "base_lr": 0.0, "algorithm": "adamw"})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["algorithm"] == "muon" else self._adamw)(parameters, group["lr"])
        return loss

    def _adamw(self, parameters: list[Tensor], lr: float) -> None:
        (beta1, beta2), decay = self.recipe.betas, self.recipe.weight_decay
        for p in parameters:
            state = self.state[p]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
        means, squares = ([self.state[p][name] for p in parameters] for name in ("mean", "square"))
        grads, count = [p.grad for p in parameters], float(self.state[parameters[0]]["step"])
        if decay:  # not on biases, norms and the like
            torch._foreach_mul_([p for p in parameters if p.ndim > 1], 1 - lr * decay)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, math.sqrt(1 - beta2**count))
        torch._foreach_add_(denominators, self.recipe.eps)
        torch._foreach_addcdiv_(parameters, means, denominators, -lr / (1 - beta1**count))

    def _muon(self, parameters: list[Tensor], lr: float) -> None:
        by_shape = defaultdict(list)
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.recipe.muon_momentum)
            update = p.grad.lerp(state["momentum"], self.recipe.muon_momentum)  # Nesterov
            p.mul_(1 - lr * self.recipe.weight_decay)
            for rows, piece in zip(_square_parts(p), _square_parts(update), strict=True):
                by_shape[piece.shape].append((rows, piece))
        for shape, pairs in by_shape.items():
            scale = -lr * math.sqrt(max(1.0, shape[0] / shape[1]))
            matrices = torch.stack([piece for _, piece in pairs])
            updates = orthogonalize(matrices, self.recipe.muon_steps, self.half_products)
            for (rows, _), update in zip(pairs, updates, strict=True):
                rows.add_(update.to(rows.dtype), alpha=scale)


def _square_parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """
    Views on what Muon treats as matrices: the parts of a packed projection (q, k and v in one matrix of three times as
    many rows), a convolution as (output channels, everything else), else the matrix.
    """
    if matrix.ndim > 2:
        return (matrix.flatten(1),)
    rows, columns = matrix.shape
    return matrix.chunk(3) if rows == 3 * columns else (matrix,)


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> MuonAdamW:
    """An optimizer for all trainable parameters of `model`; see [`OptimizerRecipe`] for which go to Muon."""
    groups: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim in (2, 4) and any(part in name for part in recipe.muon_parameters)
        scale = next((float(value) for part, value in recipe.lr_scales.items() if part in name), 1.0)
        groups["muon" if inner and recipe.muon_lr > 0 else "adamw", scale].append(parameter)
    peaks = {"adamw": recipe.lr, "muon": recipe.muon_lr}
    parts = [
        {"params": parameters, "algorithm": algorithm, "base_lr": scale * peaks[algorithm]}
        for (algorithm, scale), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return MuonAdamW(parts, recipe)


def learning_rate_factor(step: int, steps: int, recipe: OptimizerRecipe) -> float:
    """Share of the peak learning rate at `step` (0-based) of `steps`: a pure function, so nothing is to be saved."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    if recipe.schedule == "hold":
        shape = min(1.0, (1.0 - done) / max(1e-9, 1.0 - recipe.hold))
    else:
        shape = 0.5 * (1.0 + math.cos(math.pi * done))
    return recipe.final + (1.0 - recipe.final) * max(0.0, shape)


class MovingAverage:
    """
    Exponential moving average of a model's floating tensors, in float32; other tensors are copied.

    Args:
        model: whose weights it starts from.
        decay: the final decay; early on it is lower, so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: _copy(v) for k, v in model.state_dict().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes whole tensors by name, this process's parts of them where its own lie in parts."""
        self.tensors = {k: part_like(v.to(self.tensors[k].device), self.tensors[k]) for k, v in tensors.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves towards the weights of `model` after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs: dict[type, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # whole tensors and parts do not mix
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                pairs[type(value)].append((self.tensors[name], value.float()))
            else:
                self.tensors[name].copy_(value)
        for group in pairs.values():
            ours, theirs = (list(values) for values in zip(*group, strict=True))
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the context `model` carries the averaged weights and is in eval mode."""
        backup, training = {k: v.clone() for k, v in model.state_dict().items()}, model.training
        model.load_state_dict(self.tensors)
        try:
            yield model.eval()
        finally:
            model.load_state_dict(backup)
            model.train(training)


def _copy(value: Tensor) -> Tensor:
    return value.detach().float().clone() if value.is_floating_point() else value.detach().clone()
