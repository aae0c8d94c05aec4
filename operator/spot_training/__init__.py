"""spot-training-operator: train on spot GPU nodes, to the end, however often nodes are taken.

The folders follow the places where code runs: ``node`` (the agent on each spot node), ``control`` (the
operator), ``train`` (inside the training container); ``api`` is what they agree on, ``cluster`` is the way to
the API server.
"""
