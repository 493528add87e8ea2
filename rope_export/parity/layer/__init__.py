"""One attention layer: its reference, its rounding, its calls and its possible faults."""
