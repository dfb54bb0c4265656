"""A string to ids, and back."""
