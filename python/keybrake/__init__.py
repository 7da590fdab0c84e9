"""Spending limits for the API keys that agents hold, enforced before a call leaves the process."""

from keybrake._keybrake import __version__ as __version__
