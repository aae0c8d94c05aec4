"""``spot-training operator``, ``spot-training agent`` and ``spot-training library``."""

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
    print("usage: spot-training {operator|agent|library} [--help]", file=sys.stderr)  # noqa: T201
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
