"""Calibration text as windows of tokens, under the name of the W4 + A4/A8 document's module."""

from bitplan.reference.datasets import calibration_tokens
from bitplan.reference.text import windows

__all__ = ["calibration_tokens", "windows"]
