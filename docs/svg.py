"""Pieces of an SVG drawing: boxes, grids, arrows and words, in colors for light and dark pages."""

import textwrap

STYLE = """
    .page { fill: #ffffff } .tip { fill: #57606a }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
    text { fill: #1f2328; font: 13px system-ui, sans-serif; text-anchor: middle }
    .shape { font: 12px ui-monospace, monospace; fill: #57606a }
    .name { font-weight: 600 } .left { text-anchor: start }
    .plain { fill: #f0f2f4; stroke: #8c959f } .image { fill: #dbeafe; stroke: #2563eb }
    .prompt { fill: #fef3c7; stroke: #b45309 } .mask { fill: #dcfce7; stroke: #15803d }
    .unread { fill: none; stroke: #8c959f; stroke-dasharray: 4 3 }
    .cell.plain { fill: #57606a } .cell.image { fill: #2563eb }
    .cell.prompt { fill: #b45309 } .cell.mask { fill: #15803d }
    .marked { fill: none; stroke: #1f2328; stroke-width: 2.5 } .sign { font-size: 22px }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117 } .line { stroke: #9da7b1 } .tip { fill: #9da7b1 }
      text { fill: #e6edf3 } .shape { fill: #9da7b1 }
      .plain { fill: #21262d; stroke: #6e7681 } .image { fill: #132f5c; stroke: #58a6ff }
      .prompt { fill: #42300a; stroke: #d29922 } .mask { fill: #0f3d21; stroke: #3fb950 }
      .cell.plain { fill: #9da7b1 } .cell.image { fill: #58a6ff }
      .cell.prompt { fill: #d29922 } .cell.mask { fill: #3fb950 }
      .unread { stroke: #6e7681 } .marked { stroke: #e6edf3 }
    }
"""


def text(x, y, words, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x, y, width, height, kind, *lines):
    """A box centered at (x, y): its name, and further lines; '=' marks a line of numbers."""
    top = y + 5 - 8.5 * (len(lines) - 1)
    kinds = ["name", *("shape" if line.startswith("=") else "" for line in lines[1:])]
    place = f'x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}"'
    lines = [line.lstrip("=") for line in lines]
    return [f'<rect {place} rx="6" class="{kind}"/>'] + [
        text(x, f"{top + 17 * i:g}", line, kinds[i]) for i, line in enumerate(lines)
    ]


def arrow(*points):
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return [f'<polyline points="{path}" class="line" marker-end="url(#tip)"/>']


def grid(x, y, rows, columns, size, kind, shade=lambda row, column: 1):
    """Cells from (x, y) on; `shade` is a cell's opacity, and the border is drawn in full."""
    return [
        f'<rect x="{x + size * column:g}" y="{y + size * row:g}" width="{size:g}" '
        f'height="{size:g}" class="cell {kind}" fill-opacity="{shade(row, column):.2g}"/>'
        for row in range(rows)
        for column in range(columns)
    ]


def page(width, height, title, description, parts) -> str:
    """A drawing that can be read without seeing it."""
    body = "\n  ".join(parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
     role="img" aria-labelledby="title desc">
  <title id="title">{title}</title>
  <desc id="desc">{textwrap.fill(description, 100)}</desc>
  <style>{STYLE}  </style>
  <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
          orient="auto">
    <path d="M0,0 L8,4 L0,8 z" class="tip"/>
  </marker>
  <rect width="{width}" height="{height}" rx="8" class="page"/>
  {body}
</svg>
"""
