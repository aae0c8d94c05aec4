"""What checkpoints survive, and what they cost: `make bench-checkpoint`.

`kills` ends programs by SIGKILL at random instants of saving. `recording` notes every change that a program makes to
a directory, and `crashes` makes from that what a power failure may leave by the weakest model; `disk` notes what a real
file system writes to its disk, and `outages` makes from that what it may find after a power failure. `damage` alters
what is stored. `speed` measures, beside `plain` file input and output.
"""
