"""Looks for the first tensor that a runtime gets wrong in a case that failed, and for why."""
