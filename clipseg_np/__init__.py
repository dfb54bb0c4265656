"""CLIPSeg, segmentation of a picture by a text or picture prompt, written by hand on NumPy."""

from .clip import CLIPSegModel, CLIPSegTextModel, CLIPSegVisionModel
from .clipseg import CLIPSegForImageSegmentation
from .config import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig
