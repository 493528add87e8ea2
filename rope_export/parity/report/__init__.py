"""What a comparison found, as an object and as text."""
