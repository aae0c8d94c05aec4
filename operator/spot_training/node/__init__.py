"""The agent on a spot node: reads the notice, marks the node, drains it."""
