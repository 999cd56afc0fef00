"""Memory, messages and meeting points that unrelated processes share."""

from mmkit.shared.channel import Channel
from mmkit.shared.locks import Condition, Lock, RLock
from mmkit.shared.meeting import Barrier, Event, Semaphore

__all__ = ["Barrier", "Channel", "Condition", "Event", "Lock", "RLock", "Semaphore"]
