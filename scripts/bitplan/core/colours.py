"""The colours of figures and pages: eight that people with any kind of colour vision tell apart, and greys."""

BLUE, LIGHT_BLUE, ORANGE, GREEN = "#1f6fb2", "#7fb2dd", "#d1661f", "#2f8f4e"
PURPLE, RED, OCHRE, TEAL, GREY, BLACK = "#8a4fb0", "#c22f3d", "#b09a2f", "#0e8a97", "#9a9a9a", "#222222"
