"""An image to numbers, and logits to its size."""

from .image_processor import ViTImageProcessor, output_size, probabilities_at
from .load_image import load_image

__all__ = ["ViTImageProcessor", "load_image", "output_size", "probabilities_at"]
