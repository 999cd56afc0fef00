"""Memory and meeting points that unrelated processes share."""

from mmkit.shared.locks import Condition, Lock, RLock
from mmkit.shared.meeting import Barrier, Event, Semaphore

__all__ = ["Barrier", "Condition", "Event", "Lock", "RLock", "Semaphore"]
