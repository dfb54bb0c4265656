"""An image to numbers, and logits to its size."""
