"""The chart rendered for `kubectl apply`: `python -m tests.kit.manifests --write manifests/install.yaml`."""

import argparse
import sys
from pathlib import Path
from typing import Final

from tests.kit import install
from tests.kit.kube import tool
from tests.kit.shell import run

HEADER: Final = f"""\
# spot-training-operator for `kubectl apply --server-side -f`; the Helm chart with its default values.
# Made from the chart by `make manifests`; do not edit.
apiVersion: v1
kind: Namespace
metadata:
  name: {install.NAMESPACE}
"""


def rendered() -> str:
    """The text of manifests/install.yaml."""
    output = run([tool("helm"), "template", install.RELEASE, install.CHART, "--namespace", install.NAMESPACE])
    # What Helm says about itself stands before the first document.
    body = output[output.index("---") :]
    lines = [line for line in body.splitlines() if not line.startswith("# Source:")]
    kept = [line for line in lines if "helm.sh/" not in line and "managed-by: Helm" not in line]
    return HEADER + "\n".join(line.rstrip() for line in kept) + "\n"


def main() -> int:
    """Write the rendered chart."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, required=True)
    parser.parse_args().write.write_text(rendered())
    return 0


if __name__ == "__main__":
    sys.exit(main())
