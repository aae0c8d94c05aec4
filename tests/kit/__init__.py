"""What the tests and the demo stand on: a real kind cluster, made from whatever the machine has."""
