"""The examination of a machine for what mmkit needs of it: what works, what limits, what to change."""

from __future__ import annotations

from mmkit.doctor.examination import Examination, Finding, document, examine
from mmkit.doctor.fact import UNLIMITED, Fact

__all__ = ["UNLIMITED", "Examination", "Fact", "Finding", "document", "examine"]
