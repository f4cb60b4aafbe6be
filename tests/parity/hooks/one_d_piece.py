"""One-D-Piece stores what TiTok stores, and prefixes of any length."""

from .titok import HOOKS  # noqa: F401
