"""Linear layers with their adapter multiplied in, and a gradient that never builds the full weight's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class MergedLinear(nn.Module):
    """Stands for a linear layer and PEFT's adapter on it; with adapter `name`, y = x (W + s B A)' + b.

    Forward is one product, as without an adapter. Backward forms the gradients of A and B from products of the rank's
    width: a third less work than by way of the gradient of W.
    """

    def __init__(self, layer: Any) -> None:
        """`layer`: PEFT's LoRA layer, which keeps the parameters."""
        super().__init__()
        # In a tuple, so that its parameters are not registered a second time.
        self._layer = (layer,)
        self.name = "policy"
        self.weight: Tensor | None = None
        """W + s B A of the adapter to use, without gradient; set before each pass."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self._layer[0]
        bias = layer.get_base_layer().bias
        assert self.weight is not None
        if self.name != "policy" or not torch.is_grad_enabled():
            return functional.linear(x, self.weight, bias)
        a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
        return _Product.apply(x, self.weight, bias, a, b, layer.scaling["policy"])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad = gradients[0].reshape(-1, weight.shape[0])
        rows = x.reshape(-1, weight.shape[1])
        dtype = grad.dtype
        grad_x = (grad @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        grad_a = (ctx.scaling * (grad @ b.to(dtype)).T @ rows).to(a.dtype)
        grad_b = (ctx.scaling * grad.T @ (rows @ a.to(dtype).T)).to(b.dtype)
        return grad_x, None, None, grad_a, grad_b, None
