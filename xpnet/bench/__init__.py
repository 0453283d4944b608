"""`python -m xpnet bench`: time training steps and whole jobs of xpnet and of the installed peers."""

from .cases import JOBS, NETWORKS, Case
from .measure import Result, measure
from .run import main

__all__ = ["JOBS", "NETWORKS", "Case", "Result", "main", "measure"]
