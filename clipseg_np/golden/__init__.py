"""Reference numbers for a port."""
