"""Defaults that the settings of the workflow and the flags of the commands share."""

from typing import Literal, get_args

# Tokens of a window, and windows of each text.
WINDOW_LENGTH = 512
CALIBRATION_WINDOWS = 16
VALIDATION_WINDOWS = 16
EVALUATION_WINDOWS = 32

# Of rounding: docs/rounding.md.
DAMPING, DESCENTS, TUNING_STEPS, TOKENS_PER_STEP = 0.01, 2, 50, 2048

Bos = Literal["auto", "always", "never"]
BOS_POLICIES = get_args(Bos)
BOS_MEANING = "whether windows begin with BOS; auto: in families that need it (Gemma)"
