"""Segment an image with one page of NumPy, clipseg_np/pico.py, and the demonstration checkpoint.

    python examples/pico_demo.py [MASK]

writes the mask of "a red thing" in examples/shapes.png to the file MASK, by default pico_mask.png.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from clipseg_np import CLIPTokenizer, pico

ROOT = Path(__file__).parents[1]
DEMO, PROMPT = ROOT / "weights" / "demo", "a red thing"

w = {name: array.astype("float32") for name, array in load_file(DEMO / "model.safetensors").items()}
config = json.loads((DEMO / "config.json").read_text("utf-8"))
settings = json.loads((DEMO / "preprocessor_config.json").read_text("utf-8"))

image = Image.open(ROOT / "examples" / "shapes.png")
small = image.resize((settings["size"]["width"], settings["size"]["height"]), Image.BILINEAR)
pixels = (np.asarray(small) / 255 - settings["image_mean"]) / settings["image_std"]  # (H,W,C)
images = pixels.transpose(2, 0, 1)[None].astype("float32")  # (1,C,H,W)
text = CLIPTokenizer.from_pretrained(DEMO)(PROMPT, return_tensors="np")

prompts = pico.text_tower(text.input_ids, text.attention_mask, w, config)
logits = pico.clipseg(images, prompts, w, config)[0]  # (H,W)
mask = np.asarray(Image.fromarray(logits).resize(image.size, Image.BILINEAR)) > 0

path = sys.argv[1] if len(sys.argv) > 1 else "pico_mask.png"
Image.fromarray(mask).save(path)
print(f"{PROMPT}: {mask.mean():.1%} of the image, in {path}")
