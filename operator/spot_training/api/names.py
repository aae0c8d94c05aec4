"""Every name that users and the three programs agree on: labels, annotations, taints, variables.

Standard library only: the agent reads this module and must stay small.
"""

from typing import Final

GROUP: Final = "spot.training"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
JOB_KIND: Final = "SpotTrainingJob"
JOB_PLURAL: Final = "spottrainingjobs"
POOL_KIND: Final = "SpotPool"
POOL_PLURAL: Final = "spotpools"
MANAGED_BY: Final = "spot.training/operator"

# Pod labels. The job's name and UID find the pods of a job; attempt and index say which one it is.
LABEL_JOB: Final = "spot.training/job"
LABEL_JOB_UID: Final = "spot.training/job-uid"
LABEL_ATTEMPT: Final = "spot.training/attempt"
LABEL_INDEX: Final = "spot.training/index"

# Label of the agent's pods; with it the operator knows the nodes that have a ready agent.
LABEL_PROVIDER: Final = "spot.training/provider"

# What a node costs an hour, where it is not what its pool costs: set by whoever knows.
PRICE: Final = "spot.training/price-per-node-hour"

# On a pod: seconds after which its machine's budget is used up. Only where that is why the pod has a deadline.
BUDGET_SECONDS: Final = "spot.training/budget-seconds"

# On a pod that keeps a node of a SpotPool warm: a digest of what it was made from.
MADE_FROM: Final = "spot.training/made-from"

# The agent's marks on its Node: the only channel from agent to operator.
TAINT_RECLAIM: Final = "spot.training/reclaim"
NOTICE_ID: Final = "spot.training/notice-id"
NOTICE_KIND: Final = "spot.training/notice-kind"
NOTICE_SOURCE: Final = "spot.training/notice-source"
RECLAIM_DEADLINE: Final = "spot.training/reclaim-deadline"
NOTICED_AT: Final = "spot.training/noticed-at"
CORDONED_BY: Final = "spot.training/cordoned-by"
CORDONED_AT: Final = "spot.training/cordoned-at"

# Node conditions with which the agent reports its drain; the types KEP-5683 settled on.
CONDITION_DRAINING: Final = "DrainInProgress"
CONDITION_DRAINED: Final = "Drained"

# Why a pod was deleted by us, in the pod condition that Kubernetes itself uses for disruptions.
DISRUPTION_TARGET: Final = "DisruptionTarget"
REASON_RECLAIMED: Final = "SpotReclamation"

# Environment of the training container.
ENV_JOB: Final = "SPOT_JOB"
ENV_FENCE: Final = "SPOT_FENCE"
ENV_ATTEMPT: Final = "SPOT_ATTEMPT"
ENV_CHECKPOINT_DIR: Final = "SPOT_CHECKPOINT_DIR"
ENV_RESUME_DIR: Final = "SPOT_RESUME_DIR"
ENV_INTERVAL: Final = "SPOT_CHECKPOINT_INTERVAL_SECONDS"
ENV_GRACE: Final = "SPOT_GRACE_SECONDS"

# Kept from every deadline: the machine may go a little early, and kubelet needs time to kill what ignores
# SIGTERM and to tell the API server that it did.
DEADLINE_MARGIN_SECONDS: Final = 5
