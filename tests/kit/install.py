"""The project as users install it, on the test cluster: `python -m tests.kit.install up`.

Images, the chart by Helm, the simulated guest agent on every spot node, the pools. Safe to call at any time.
"""

import sys
import time
from pathlib import Path
from typing import Final

import yaml

from tests.kit import engine
from tests.kit.guest_agent import control
from tests.kit.images import build_image, load_image
from tests.kit.kube import apply, kubectl, tool
from tests.kit.places import KUBECONFIG
from tests.kit.shell import run, say, step, together

NAMESPACE: Final = "spot-training"
RELEASE: Final = "spot-training-operator"
OPERATOR_IMAGE: Final = "spot-training-operator:dev"
TRAINING_IMAGE: Final = "spot-training-example:dev"
TORCH_TESTS_IMAGE: Final = "spot-training-torch-tests:dev"
INSTALLED: Final = "SPOT_TRAINING_INSTALLED"
"""The variable by which runs of tests that are begun side by side know that all of it is there."""
ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "spot-training-operator"


def operator_image() -> str:
    """Build the operator's image and have all workers hold it; returns a tag that changes with its content."""
    identity = build_image(OPERATOR_IMAGE, ROOT / "Dockerfile", ROOT)
    tag = f"{OPERATOR_IMAGE.split(':')[0]}:{identity.removeprefix('sha256:')[:12]}"
    engine.docker("tag", OPERATOR_IMAGE, tag)
    load_image(OPERATOR_IMAGE)
    load_image(tag)
    return tag


def training_image() -> None:
    """Build the example's image and have all workers hold it."""
    _build_training_image()
    load_image(TRAINING_IMAGE)


def _build_training_image() -> None:
    build_image(TRAINING_IMAGE, ROOT / "examples" / "Dockerfile", ROOT)


def torch_tests_image() -> str:
    """Build the image of the torch tests: the example, Lightning and transformers. No node needs it."""
    _build_training_image()
    directory = ROOT / "tests" / "train_torch"
    build_image(TORCH_TESTS_IMAGE, directory / "Dockerfile", directory, {"BASE": TRAINING_IMAGE})
    return TORCH_TESTS_IMAGE


def chart(image: str, **values: str) -> None:
    """Install or upgrade the chart, and wait until operator and agents are ready."""
    repository, tag = image.split(":")
    settings = {"image.repository": repository, "image.tag": tag, **values}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with step("installing the chart"):
        run(
            [
                tool("helm"),
                *("--kubeconfig", KUBECONFIG, "upgrade", "--install", RELEASE, CHART),
                *("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"),
                *words,
            ],
            timeout=240,
        )


def pools() -> None:
    """The pools of the samples, which are those of the test cluster's nodes."""
    text = (ROOT / "manifests" / "samples" / "pools.yaml").read_text()
    apply(*yaml.safe_load_all(text))


def up() -> None:
    """Everything, in order."""
    began = time.monotonic()
    image = operator_image()

    def project() -> None:
        # The guest agent first: the node agent's pod mounts its socket and cannot start without.
        control.install()
        chart(image)
        pools()

    together(project, training_image)
    kubectl("wait", "--for=condition=Available", "spotpool/spot-a", "--timeout=60s")
    say(f"==> spot-training-operator is installed, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    if sys.argv[1:] != ["up"]:
        sys.exit("usage: python -m tests.kit.install up")
    up()
