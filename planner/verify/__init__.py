"""A plan's own configuration on real DeepSpeed engines, and what they hold beside what its ledger says.

    shrink    the plan's model with fewer layers, where the machine at hand holds no more
    lines     which lines of a ledger stand for which tensors of an engine, and when
    compare   line by line: planned, measured, and whether it holds
    launch    processes under torchrun, none of which outlives its run
    worker    what each process does: build, train a few steps, look
    walk      an engine's tensors by category
    follow    every storage while a step runs; peaks
    meter     what a GPU's allocator and driver say

Only the last four are imported by the processes alone; this package itself loads neither torch nor DeepSpeed.
"""
