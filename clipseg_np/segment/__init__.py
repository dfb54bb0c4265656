"""An image and prompts in, masks out."""
