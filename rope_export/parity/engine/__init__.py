"""What is known of an engine besides the model that it was built from."""
