"""The training library: three lines make a program preemptible.

    from spot_training.train import Training

    training = Training({"model": model, "optimizer": optimizer}, total_steps=1000, save_every_steps=50)
    for step in training.steps():
        ...

It needs the standard library, and torch where the program itself uses it. `Training` tells all of it.
"""

from spot_training.train.checkpoint import Training
from spot_training.train.outcome import PassedOver, Save
from spot_training.train.problem import CheckpointError, VolumeFullError
from spot_training.train.ranks import PeerLostError
from spot_training.train.signals import Preempted
from spot_training.train.state import Files, UnsavableStateError

__all__ = [
    "CheckpointError",
    "Files",
    "PassedOver",
    "PeerLostError",
    "Preempted",
    "Save",
    "Training",
    "UnsavableStateError",
    "VolumeFullError",
]
