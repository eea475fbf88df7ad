"""Number formats: quantize, dequantize and exact sizes."""
