"""Calibration text as windows of tokens, under the name of the W4 + A4/A8 document's module."""

from bitplan.evaluate.calibration import calibration_tokens
from bitplan.evaluate.text import windows

__all__ = ["calibration_tokens", "windows"]
