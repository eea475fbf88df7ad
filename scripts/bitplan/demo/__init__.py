"""The bundled model: its story generator and its training."""
