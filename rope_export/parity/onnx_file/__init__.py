"""ONNX files that others made: what they take and give, how they are run, why they are wrong."""
