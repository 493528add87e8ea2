"""An engine, besides the model that it was built from: its corners, structure and numbers."""
