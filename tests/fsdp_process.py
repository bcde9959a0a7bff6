"""One of several processes that shard a model's weights: does the requests of a file, with faults put in between.

Run by `accelerate launch`; arguments: a file of lines, each a request to the worker or a fault, and a file for what
this process found, whose name gets its number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from krill_tui.models.worker_protocol import NoteReply, request_adapter
from krill_tui.training.ranks import launched_ranks
from krill_tui.training.worker import Worker


def fail_once(module: nn.Module, calls: int) -> None:
    """Make one call of a module run out of memory, after some that go well."""
    left = [calls]

    def hook(module: nn.Module, arguments: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise MemoryError("not enough memory")

    module.register_forward_pre_hook(hook)


def main() -> None:
    ranks = launched_ranks()
    replies: list[dict[str, Any]] = []
    notes: list[str] = []
    worker = Worker(
        lambda reply: notes.append(reply.message) if isinstance(reply, NoteReply) else None, ranks
    )
    for line in Path(sys.argv[1]).read_text().splitlines():
        told = json.loads(line)
        if told["kind"] == "fault":
            if ranks.index == told["process"]:
                fail_once(worker._loaded.policy.base.get_submodule(told["module"]), told["calls"])
            continue
        replies.append(json.loads(worker.handle(request_adapter.validate_json(line)).model_dump_json()))
        if told["kind"] == "load" and worker._sharded:
            replies[-1]["held"] = worker._sharded.held()
    found = {"replies": replies, "notes": notes}
    Path(f"{sys.argv[2]}-{ranks.index}.json").write_text(json.dumps(found))
    ranks.end_process()


if __name__ == "__main__":
    main()
