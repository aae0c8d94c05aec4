"""The operator: sees nodes, pods and jobs, decides what to do, and does it."""
