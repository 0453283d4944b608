"""`python -m xpnet bench`: a training step of xpnet beside the peers that are installed, in one run."""

from .cases import NETWORKS, Case
from .run import Result, main, measure

__all__ = ["NETWORKS", "Case", "Result", "main", "measure"]
