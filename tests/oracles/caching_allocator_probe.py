"""Replays a stream on the GPU's own allocator: events as JSON on standard input, one pair of figures per event out."""

from __future__ import annotations

import json
import sys

import torch

FREE = -1


def main() -> None:
    """Print [allocated, reserved] after every event."""
    held: dict[int, torch.Tensor] = {}
    seen = []
    for key, size in json.load(sys.stdin):
        if size == FREE:
            del held[key]
        else:
            held[key] = torch.empty(size, dtype=torch.uint8, device="cuda")
        seen.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
