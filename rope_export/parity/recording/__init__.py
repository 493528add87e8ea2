"""Calls that lie in a file: recorded, replayed, and compared with what runs now."""
