"""Memory as it was, while it goes on being written to: what `Region.snapshot` returns."""

from __future__ import annotations

from mmkit.snapshot.snapshot import Snapshot

__all__ = ["Snapshot"]
