"""CLIPSeg, segmentation of an image by a text or image prompt, written by hand on NumPy."""

from typing import TYPE_CHECKING, Any

from .errors import InputError, MissingExtra
from .image.image_processor import ViTImageProcessor
from .model.clip import CLIPSegModel, CLIPSegTextModel, CLIPSegVisionModel
from .model.clipseg import CLIPSegForImageSegmentation
from .model.config import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig
from .model.learned_prompt import LearnedPrompt
from .model.recorded import recorded
from .nn.learning import learning
from .nn.trace import trace
from .segment.processor import CLIPSegProcessor
from .segment.segmentation import Segmentation
from .segment.segmenter import Segmenter
from .segment.visual_prompt import VisualPrompt
from .text.tokenizer import CLIPTokenizer
from .version import __version__

if TYPE_CHECKING:
    from .segment.batch import Job, run_batch

__all__ = [
    "CLIPSegConfig",
    "CLIPSegForImageSegmentation",
    "CLIPSegModel",
    "CLIPSegProcessor",
    "CLIPSegTextConfig",
    "CLIPSegTextModel",
    "CLIPSegVisionConfig",
    "CLIPSegVisionModel",
    "CLIPTokenizer",
    "InputError",
    "Job",
    "LearnedPrompt",
    "MissingExtra",
    "Segmentation",
    "Segmenter",
    "ViTImageProcessor",
    "VisualPrompt",
    "__version__",
    "learning",
    "recorded",
    "run_batch",
    "trace",
]


# Names of transformers' classes that stand for these when the checkpoint is CLIPSeg's.
ALIASES = {
    "AutoConfig": CLIPSegConfig,
    "AutoImageProcessor": ViTImageProcessor,
    "AutoModel": CLIPSegModel,
    "AutoModelForZeroShotImageClassification": CLIPSegModel,
    "AutoProcessor": CLIPSegProcessor,
    "AutoTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
}


def __getattr__(name: str) -> Any:
    """A class by transformers' name for it; or Job or run_batch, imported here: 20 ms and 8 MB."""
    if name in ALIASES:
        return ALIASES[name]
    if name not in ("Job", "run_batch"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .segment import batch

    return getattr(batch, name)
