"""Draw docs/*.svg: the architecture, and four ideas of it.

python docs/draw.py
"""

from pathlib import Path

from draw_architecture import architecture
from draw_ideas import attention, film, patches, transposed_convolution

DRAWINGS = architecture, patches, attention, film, transposed_convolution

if __name__ == "__main__":
    for draw in DRAWINGS:
        Path(__file__).with_name(f"{draw.__name__}.svg").write_text(draw(), "utf-8")
