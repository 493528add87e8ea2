"""What is known of one attention layer: its reference, rounding, calls and faults."""
