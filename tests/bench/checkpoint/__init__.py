"""What checkpoints survive, and what they cost: `make bench-checkpoint`.

`kills` ends programs by SIGKILL at random instants of saving. `recording` notes every change that a program makes to
a directory, and `crashes` makes from that what a power failure may leave. `damage` alters what is stored.
"""
