"""MedITok's stored outputs have UniTok's names."""

from .unitok import HOOKS as HOOKS
