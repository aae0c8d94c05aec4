"""``spot-training`` with the sub-command ``operator``, ``agent``, ``library`` or ``pause``."""

import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the sub-command. Each imports only its own program: the agent must stay small."""
    words = sys.argv[1:] if argv is None else argv
    command = words[0] if words else ""
    if command == "operator":
        from spot_training.control.main import main as run_operator

        return run_operator(words[1:])
    if command == "agent":
        from spot_training.node.main import main as run_agent

        return run_agent(words[1:])
    if command == "library":
        from spot_training.train.deliver import main as deliver

        return deliver(words[1:])
    if command == "pause":
        # The program of pods that only hold a node: nothing, until they are told to stop.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.sigwait([signal.SIGTERM])
        return 0
    print("usage: spot-training {operator|agent|library|pause} [--help]", file=sys.stderr)  # noqa: T201
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
