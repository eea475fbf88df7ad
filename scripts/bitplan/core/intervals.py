"""How errors of figures are printed: as 95 % intervals. Files hold standard errors."""

STANDARD_ERRORS = 1.96


def half_width(standard_error: float) -> float:
    """Return half the width of a figure's 95 % interval, in its unit: 1.96 standard errors, as for a normal distribution."""
    return STANDARD_ERRORS * standard_error
