"""The native module. Private: use the functions and classes of `keybrake`."""

from typing import Final

__all__ = ["__version__"]

__version__: Final[str]
