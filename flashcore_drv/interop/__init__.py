"""Arrays of other libraries, taken as they are."""

from .addresses import address_of, on_gpu, refuse_immutable
from .arrays import ArrayView, view_of

__all__ = ["ArrayView", "address_of", "on_gpu", "refuse_immutable", "view_of"]
