"""The processes that train together (`accelerate launch`): who does what, and what is summed over all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy

from krill_tui.errors import ModelError

T = TypeVar("T")
_SHARD_BY = "policy.accelerate_config fsdp is a config that works"
_PATIENCE = timedelta(days=30)
"""How long a process waits for the others: a run may play, or wait for its teacher, for hours between two requests."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How weights are sharded; see `fsdp.yaml`."""

    reshard_after_forward: bool = True
    layers: tuple[str, ...] = ()
    """Classes of the layers that are gathered one by one; empty: those the model names."""


class Ranks:
    """Every process sees every request and does its share of it; losses are sums, so gradients are summed.

    One process alone is the same with nothing to wait for. All methods but `share` are collective: every process
    calls them, in the same order.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        self.index = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1

    @property
    def sharding(self) -> Sharding | None:
        """How the launcher's config wants the weights sharded; None where each process has them all.

        Raises:
            ModelError: it asks for something that is not there.
        """
        if self._accelerator is None:
            return None
        kind = self._accelerator.distributed_type.value
        if kind in ("DEEPSPEED", "MEGATRON_LM"):
            raise ModelError(f"the model worker does not shard weights with {kind}", hint=_SHARD_BY)
        # On CPUs accelerate reads the setting and does not take note of it.
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
            return None
        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ModelError("the model worker shards weights with fsdp_version 2 only", hint=_SHARD_BY)
        if plugin.activation_checkpointing:
            raise ModelError(
                "the model worker does not do fsdp_activation_checkpointing",
                hint="policy.gradient_checkpointing",
            )
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise ModelError("the model worker does not do fsdp_offload_params", hint=_SHARD_BY)
        return Sharding(bool(plugin.reshard_after_forward), tuple(plugin.transformer_cls_names_to_wrap or ()))

    @property
    def device(self) -> str | None:
        """The device of this process where the launcher gave it one."""
        if self._accelerator is None or self._accelerator.device.type == "cpu":
            return None
        return str(self._accelerator.device)

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which of some pieces are this process's: a run of neighbours, about equal in the sum of their `sizes`.

        Neighbours stay together because the episodes of a group have a prompt in common. Every piece belongs to one
        process; with few pieces some processes get none.
        """
        total = sum(sizes)
        mine, before = [], 0
        for index, size in enumerate(sizes):
            middle = (before + size / 2) * self.count
            if self.index * total <= middle < (self.index + 1) * total:
                mine.append(index)
            before += size
        return mine

    def broadcast(self, value: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        broadcast_object_list(box)
        return box[0]

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, one after the other."""
        return list(values) if self.count == 1 else list(gather_object(list(values)))

    def totals(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums of the processes added up by name."""
        total: dict[str, float] = {}
        for name, value in self.gather(list(sums.items())):
            total[name] = total.get(name, 0.0) + value
        return total

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by the sum over the processes; one that a process lacks counts as 0."""
        if self._accelerator is None or self.count == 1:
            return
        chosen = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen])
        summed = self._accelerator.reduce(flat, reduction="sum")
        assert isinstance(summed, Tensor)
        for parameter, part in zip(chosen, summed.split([p.numel() for p in chosen]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def end_process(self) -> None:
        """Leave the others in good order, and end this process here where there are others.

        Threads of torch's process groups may still hold Python objects, and now and then abort a process whose
        interpreter is torn down around them.
        """
        if self._accelerator:
            self._accelerator.end_training()
        if self.count > 1:
            sys.stderr.flush()
            os._exit(0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch of work that each process does alone; where it fails in one of them, it fails in all.

        Raises:
            MemoryError: memory ran out in another process.
            ModelError: something else broke in another process.
        """
        if self.count == 1:
            yield
            return
        failed: BaseException | None = None
        try:
            yield
        except Exception as error:
            failed = error
        told = "" if failed is None else "memory" if is_out_of_memory(failed) else str(failed) or repr(failed)
        others = self.gather([told])
        if failed is not None:
            raise failed
        if any(others):
            if "memory" in others:
                raise MemoryError("memory ran out in another process")
            raise ModelError(f"another process failed: {next(filter(None, others)).splitlines()[0]}")


ALONE = Ranks()


def launched_ranks() -> Ranks:
    """The processes that `accelerate launch` (or torchrun) started with this one; alone without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return Ranks(Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]))


_PEER_LOST = ("gloo", "nccl", "connection reset by peer", "connection closed by peer", "timed out waiting")


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the group is gone; the group cannot go on then."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PEER_LOST)


def free_memory(device: str) -> int:
    """Bytes that a device has left; the CPU and Apple's GPUs have the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def release_memory() -> None:
    """Give cached blocks of a device back, after memory ran out."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


_SAID = ("not enough memory", "out of memory", "can't allocate memory")
"""Windows and older torch, Apple's GPUs, Linux."""


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises a plain RuntimeError when the CPU's memory, or Apple's, is short."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(said in text for said in _SAID)
