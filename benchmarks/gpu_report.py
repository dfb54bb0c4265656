"""The text of gpu.md from the results that gpu.py has so far."""

import math

EAGER, COMPILED = "transformers, eager", "transformers, compiled"
OURS, RECORDED = "clipseg_np, eager", "clipseg_np, recorded"
TESTS_SHOWN = 12


def report(measured: dict) -> str:
    lines = ["# On a GPU", ""]
    if measured["rehearsal"]:
        lines += ["**A rehearsal without a GPU: no number here means anything.**", ""]
    lines += [
        f"`python benchmarks/gpu.py --minutes {measured['minutes']:g}`, {measured['date']}.",
        "",
    ]
    for section in (card, tests, passes, launches, operations, tf32, threads):
        try:
            lines += section(measured)
        except Exception as error:  # noqa: BLE001  (one section must not cost the others)
            lines += [f"{section.__name__} cannot be shown: {type(error).__name__}: {error}", ""]
    for key in ("left out", "errors"):
        if measured[key]:
            lines += [f"## {key.capitalize()}", "", *(f"- {line}" for line in measured[key]), ""]
    took = ", ".join(f"{step} {seconds:g}" for step, seconds in measured["seconds"].items())
    return "\n".join([*lines, f"Seconds that each step took: {took}.", ""])


def table(head: str, rows: list[list]) -> list[str]:
    """A table, or nothing without rows. A cell is a text, or a number (or None) with its format."""

    def text(cell) -> str:
        if isinstance(cell, tuple):
            number, form = cell
            return "" if number is None else f"{number:{form}}"
        return str(cell)

    head = head.split(" | ")
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([*map(text, row)] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""] if rows else []


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b and math.isfinite(a / b) else None


def merged(results: list[dict], step: str) -> dict[tuple, dict]:
    """The results by type and number of images; later results of single systems are added."""
    cells: dict[tuple, dict] = {}
    for result in results:
        task = result["task"]
        if task["step"] == step:
            cell = cells.setdefault((task["dtype"], task["batch"]), {})
            for key, value in result.items():
                old = cell.get(key)
                cell[key] = {**old, **value} if isinstance(old, dict) else value
    return cells


def card(measured: dict) -> list[str]:
    hidden = ("task", "errors", "seconds")
    about = measured.get("card", [{}])[0]
    return table(" | ", [[name, value] for name, value in about.items() if name not in hidden])


def tests(measured: dict) -> list[str]:
    if "tests" not in measured:
        return []
    results, collected = measured["tests"]["results"], measured["tests"]["collected"]
    outcomes = [result["outcome"] for result in results.values()]
    counts = [outcomes.count(name) for name in ("passed", "failed", "skipped")]
    head = "passed | failed | skipped | not run"
    lines = ["## Tests marked `gpu`", "", *table(head, [[*counts, collected - len(results)]])]
    failed = {name: result for name, result in results.items() if result["outcome"] == "failed"}
    if measured["rehearsal"]:
        wrong = [name for name, result in failed.items() if result["kind"] == "AssertionError"]
        lines += [f"{len(wrong)} of the failed tests found wrong numbers, as they must here.", ""]
        failed = {name: result for name, result in failed.items() if name not in wrong}
    for name, result in list(failed.items())[:TESTS_SHOWN]:
        lines += [f"`{name}` ({result['kind']})", "", "```", *result["last lines"], "```", ""]
    lines += [f"`{name}` ({result['kind']})  " for name, result in [*failed.items()][TESTS_SHOWN:]]
    return [*lines, ""]


def passes(measured: dict) -> list[str]:
    rows, rates = [], {}
    compiled = [
        result for result in measured.get("compiled", []) if COMPILED in result.get("ms", {})
    ]
    for (dtype, batch), cell in merged(measured.get("cells", []), "cell").items():
        ours = cell.get("ms", {})
        modes = [r for r in compiled if (r["task"]["dtype"], r["task"]["batch"]) == (dtype, batch)]
        modes.sort(key=lambda result: result["task"]["mode"])
        fastest = min((r["ms"] for r in modes), key=lambda ms: ms[COMPILED], default={})
        # Name, milliseconds, those of eager transformers in the same process, deviation.
        systems = [(name, ms, ours.get(EAGER), cell["off"].get(name)) for name, ms in ours.items()]
        for result in modes:
            name, ms = f"{COMPILED}, {result['task']['mode']}", result["ms"]
            systems.append((name, ms[COMPILED], ms.get(EAGER), result["off"].get(COMPILED)))
        for name, ms, eager, off in systems:
            beside = ratio(fastest.get(name), fastest.get(COMPILED)) or ratio(
                ratio(ms, eager), ratio(fastest.get(COMPILED), fastest.get(EAGER))
            )
            used = ratio(ratio(1000 * cell["work"], ms), cell.get("rate"))
            row = [f"{dtype}, {batch}", name, (ms, ".3f"), (ratio(ms, eager), ".2f")]
            row += [(beside, ".2f"), (ratio(1000 * batch, ms), ".0f"), (used, ".2f"), (off, ".1e")]
            rows.append(row)
        if cell.get("rate"):
            rates[dtype] = f"{cell['rate'] / 1e12:.0f} TFLOP/s in {dtype}"
    head = "type, images |  | ms | of eager | of compiled | images/s | of products | off"
    explained = (
        "The rd64-refined architecture at 352 x 352, random weights; each image has a prompt of "
        "its own, 8 tokens. Milliseconds, medians of interleaved rounds; pixels and logits are on "
        "the GPU, as are the token ids that transformers gets (this package checks ids in main "
        "memory). `of eager`: the share of the time of transformers, eager, in the same process. "
        "`of compiled`: the share of the time of the faster mode of torch.compile; for the "
        "recorded pass in the same process, for the others by way of `of eager`. `of products`: "
        "the share of the GPU's own rate of large matrix products "
        f"({', '.join(rates.values())}). `off`: the largest difference from the logits in "
        "float64, of the largest logit. No TF32."
    )
    return ["## One pass", "", explained, "", *table(head, rows)] if rows else []


def launches(measured: dict) -> list[str]:
    return [
        f"The recorded pass of one image and one prompt in {result['task']['dtype']} has "
        f"{result['nodes']} nodes, as the driver counts them: {result['kernels']} kernels, "
        f"{result['copies']} copies, {result['memsets']} memsets.\n"
        for result in measured.get("operations", [])
        if "nodes" in result
    ]


def operations(measured: dict) -> list[str]:
    rows, copied = [], None
    for (dtype, batch), cell in merged(measured.get("operations", []), "operations").items():
        copied = copied or cell.get("bandwidth")
        for name, limit in cell.get("limits", {}).items():
            ours, theirs = (cell.get(f"us, {by}", {}).get(name) for by in ("clipseg_np", "torch"))
            row = [f"{dtype}, {batch}", name, (ours, ".1f"), (theirs, ".1f")]
            row += [(ratio(ours, theirs), ".2f"), limit["by"]]
            rows.append([*row, *((ratio(limit["us"], us), ".2f") for us in (ours, theirs))])
    head = "type, images |  | clipseg_np | torch | ratio | limit"
    head += " | clipseg_np's share | torch's share"
    explained = (
        "Microseconds of one call on the GPU, in a graph of 20, at the model's shapes (485 tokens, "
        "768 features, 12 heads of 64, 3072 hidden). The share of the limit is the least time that "
        "the GPU's measured rates allow, over the time: to read and write each number once "
        f"({(copied or 0) / 1e12:.2f} TB/s, of a large copy), or to multiply (the rates above). "
        "Arrays that fit the cache can exceed 1."
    )
    return ["## Operations", "", explained, "", *table(head, rows)] if rows else []


def tf32(measured: dict) -> list[str]:
    rows = [
        [batch, name, (ms, ".3f"), (ratio(ms, cell["ms"].get(EAGER)), ".2f")]
        + [(cell["off"].get(name), ".1e")]
        for (_, batch), cell in merged(measured.get("tf32", []), "cell").items()
        for name, ms in cell.get("ms", {}).items()
    ]
    explained = "As above, float32, with products in TF32: CUPY_TF32=1, and torch's allow_tf32."
    lines = ["## TF32", "", explained, ""]
    return [*lines, *table("images |  | ms | of eager | off", rows)] if rows else []


def threads(measured: dict) -> list[str]:
    results = [result for result in measured.get("threads", []) if result.get("ms")]
    if not results:
        return []
    results.sort(key=lambda result: result["task"]["count"])
    first, rows = results[0], []
    for result in results:
        ms, row = result["ms"], [result["task"]["count"]]
        for name in ("clipseg_np", "torch", "products"):
            row += [(ratio(ms.get(name), 1000), ".3f")]
            row += [(ratio(first["ms"].get(name), ms.get(name)), ".2f")]
        rows.append([*row, (ratio(ms.get("clipseg_np"), ms.get("torch")), ".2f")])
    head = "threads | clipseg_np | faster | torch | faster | products | faster | clipseg_np / torch"
    explained = (
        f"One image and one prompt in float32 on {first['processor']}, BLAS kernels "
        f"{first['kernels']}: seconds, medians of interleaved rounds, and how many times as fast "
        f"as with {first['task']['count']} thread. `products` are as many multiplications in "
        "NumPy's matrix products alone, with as many threads of its BLAS."
    )
    return ["## The host", "", explained, "", *table(head, rows)]
