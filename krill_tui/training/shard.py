"""The base model's weights sharded over the processes (torch's FSDP2); what is trained, the adapters, is not.

Every process holds a part of each weight. A layer's weights are gathered before it computes and dropped behind it, so
a pass is something that all processes do together, each on tokens of its own.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from krill_tui.errors import ModelError
from krill_tui.training.ranks import Ranks, Sharding, is_out_of_memory, release_memory

T = TypeVar("T")


class Sharded(nn.Module):
    """A model whose layers are sharded one by one, and all that is outside of them as one more piece.

    `forward` runs a function: inside of it the model may be called, and so may its parts.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        """`layers`: already sharded, each for itself."""
        super().__init__()
        self.model = model
        self._units: list[Any] = [*layers, self]
        self._gathered: list[int] = []
        """Units in the order in which this process gathered them in the present stretch."""
        self._usual: dict[bool, tuple[int, ...]] = {}
        """What a pass gathers, without and with its backward pass."""

    def forward(self, run: Callable[[], T]) -> T:
        return run()

    def watch(self) -> None:
        """Take note of what is gathered from now on."""
        for index, unit in enumerate(self._units):
            unit.set_custom_all_gather(_NotedGather(index, self._gathered))

    def learn(self, run: Callable[[bool], None]) -> None:
        """See what passes gather: `run` makes one, with its backward pass where it is given true."""
        for train in (False, True):
            self._gathered.clear()
            try:
                run(train)
            except (MemoryError, RuntimeError) as error:
                if is_out_of_memory(error):
                    leave(error)
                raise
            self._usual[train] = tuple(self._gathered)

    @contextmanager
    def keeping_pace(self, *, reference: bool, train: bool) -> Iterator[None]:
        """A pass, after one without gradient if `reference`, that may fail in this process alone.

        The others wait at each gathering for all. So what is missing is gathered for them before the error goes on;
        they hear of it where processes tell each other (`Ranks.together`).
        """
        expected = [*(self._usual[False] if reference else ()), *self._usual[train]]
        self._gathered.clear()
        try:
            yield
        except Exception as error:
            # Frames keep the activations alive.
            traceback.clear_frames(error.__traceback__)
            try:
                self.start_over()
                release_memory()
                for index in expected[len(self._gathered) :]:
                    self._units[index].unshard()
                    self._units[index].reshard()
            except Exception as again:
                leave(again)
            raise

    def start_over(self) -> None:
        """Forget a pass that was cut short."""
        root: Any = self
        root.reset_iter_state()

    def held(self) -> int:
        """Base weights that are in this process."""
        return sum(
            p.to_local().numel() if isinstance(p, DTensor) else p.numel()
            for name, p in self.model.named_parameters()
            if "lora_" not in name
        )


class _NotedGather:
    """FSDP's all-gather as it is by default, which says when it was begun."""

    def __init__(self, unit: int, gathered: list[int]) -> None:
        self._unit = unit
        self._gathered = gathered

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        work = dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        self._gathered.append(self._unit)
        return work


def shard(model: Any, ranks: Ranks, sharding: Sharding) -> Sharded:
    """Shard a frozen model that the first process has in its main memory; what the others have is replaced.

    One layer at a time goes whole to the device of each process and leaves it a part: a device never holds more than
    its share and one layer, or the embeddings.

    Raises:
        ModelError: torch is too old, or the architecture does not say what its layers are.
    """
    if not (hasattr(FSDPModule, "reset_iter_state") and hasattr(dist, "all_gather_single")):
        raise ModelError(f"torch {torch.__version__} is too old to shard weights", hint="torch 2.13 can")
    kinds = set(sharding.layers or model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ModelError(
            f"{model.config.model_type} models name no layers to shard by",
            hint="fsdp_transformer_layer_cls_to_wrap in the accelerate config",
        )
    device = torch.device(ranks.device or "cpu")
    mesh = init_device_mesh(device.type, (ranks.count,))
    model.requires_grad_(False)
    for layer in layers:
        _spread(layer, device, ranks.index == 0)
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    _spread(model, device, ranks.index == 0)
    sharded = Sharded(model, layers)
    fully_shard(sharded, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    sharded.watch()
    return sharded


@torch.no_grad()
def _spread(module: nn.Module, device: torch.device, source: bool) -> None:
    """Put what is not sharded yet on the device, as the first process has it; tied weights stay tied."""
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def move(tensor: Tensor) -> Tensor:
        there = (tensor.to(device) if source else torch.empty_like(tensor, device=device)).contiguous()
        dist.broadcast(there, 0)
        return there

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if id(parameter) not in moved:
                # With the old one, whose id must not be given away meanwhile.
                moved[id(parameter)] = nn.Parameter(move(parameter), requires_grad=False), parameter
            part._parameters[name] = moved[id(parameter)][0]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)


def leave(error: BaseException) -> None:
    """End this process, and with it the launcher and all others: they wait for it where it cannot go on."""
    traceback.print_exception(error)
    os._exit(1)
