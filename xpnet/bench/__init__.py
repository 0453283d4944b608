"""`python -m xpnet bench`: xpnet beside the peers that are installed: training steps and whole jobs."""

from .cases import JOBS, NETWORKS, Case
from .measure import Result, measure
from .run import main

__all__ = ["JOBS", "NETWORKS", "Case", "Result", "main", "measure"]
