"""Arrays of other libraries, taken as they are."""

from .arrays import ArrayView, view_of

__all__ = ["ArrayView", "view_of"]
