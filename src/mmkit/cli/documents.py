"""What several commands write into JSON."""

from __future__ import annotations

from mmkit.maps import Area

__all__ = ["area_document", "path_document"]


def area_document(area: Area) -> dict[str, object]:
    """Lay out an area, as docs/maps.md describes it."""
    fields = area._asdict()
    costs = fields.pop("costs")
    fields |= path_document("path", area.path)
    return fields | {"costs": dict(costs)} if costs else fields


def path_document(name: str, path: bytes) -> dict[str, str]:
    """Lay out a path: JSON is Unicode, and what a path is not is in a field of its own."""
    text = path.decode(errors="replace")
    return {name: text} if text.encode() == path else {name: text, f"{name}_hex": path.hex()}
