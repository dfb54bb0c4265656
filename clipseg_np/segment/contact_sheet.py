"""A batch's contact sheet: one page of HTML with all images and masks, by relative links."""

import os
import warnings
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..atomic_files import written_whole
from ..errors import printable
from .job import Job

PAGE = "index.html"
HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta name="generator" content="clipseg_np"><style>
body { font: 1rem sans-serif; overflow-wrap: anywhere }
figure { display: inline-block; vertical-align: top; width: 15rem; margin: 0.5rem }
img { max-width: 100%; max-height: 15rem; border: 1px solid gray }
</style>
"""


def write_contact_sheet(job: Job, images: dict[str, str], report: list[dict]) -> None:
    """Write the page into the output folder; `images` are paths by their names in the report.

    Warns where another file has the page's name, and keeps it.
    """
    page = Path(job.output, PAGE)
    if page.exists() and not (page.is_file() and page.read_bytes().startswith(HEAD.encode())):
        warnings.warn(f"{page} is no contact sheet, and is left as it is", stacklevel=3)
        return
    title = shown(f"{len(report)} images: {', '.join(job.captions)}")
    parts = [HEAD, f"<title>{title}</title>\n<h1>{title}</h1>\n"]
    for record in report:
        name = record["image"]
        folder = Path(job.output, "" if job.flat else name)
        parts.append(f"<h2>{shown(name)}</h2>\n{shown(record.get('error', ''))}\n")
        parts.append(figure(images[name], job.output, "the image"))
        for prompt in record.get("prompts", ()):
            caption = f"{prompt['prompt']}: {100 * prompt['share']:.1f} %"
            parts += [figure(folder / file, job.output, caption) for file in prompt["files"]]
    with written_whole(page) as temporary:
        temporary.write_text("".join(parts), "utf-8")


def figure(image: str | Path, start: str, caption: str) -> str:
    """An image and its caption, as a link to the image from the folder `start`."""
    try:
        path = os.path.relpath(image, start)
    except ValueError:  # they are on two drives of Windows
        path = os.path.abspath(image)
    link = quote(os.fsencode(path.replace(os.sep, "/")))
    tag = f'<a href="{link}"><img src="{link}" alt="{shown(caption)}" loading="lazy"></a>'
    return f"<figure>{tag}<figcaption>{shown(caption)}</figcaption></figure>\n"


def shown(text: str) -> str:
    return escape(printable(text))
