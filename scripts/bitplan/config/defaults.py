"""Defaults that the settings of the workflow and the flags of the commands share."""

from typing import Literal, get_args

# Tokens of a window, and windows of each text.
WINDOW_LENGTH = 512
CALIBRATION_WINDOWS = 16
VALIDATION_WINDOWS = 16
EVALUATION_WINDOWS = 32

# How the weights of a plan are rounded: docs/rounding.md.
Rounding = Literal["nearest", "feedback", "tuned"]
ROUNDINGS = get_args(Rounding)
DAMPING, DESCENTS, REFERENCE_SHARE, TUNING_STEPS, TOKENS_PER_STEP = 0.01, 2, 0.5, 50, 2048

Bos = Literal["auto", "always", "never"]
BOS_POLICIES = get_args(Bos)
BOS_MEANING = "whether windows begin with BOS; auto: in families that need it (Gemma)"
