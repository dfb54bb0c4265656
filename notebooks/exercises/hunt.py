"""Bug hunts: a model with a fault inside, which you find with `trace` and `compare`.

python notebooks/exercises/hunt.py                         # the hunts, and the kinds of faults
python notebooks/exercises/hunt.py 7                       # how to begin hunt 7
python notebooks/exercises/hunt.py 7 LAYER KIND            # is it there, and is it that?
"""

import sys
from difflib import get_close_matches

from faults import FAULTS, KINDS, Fault, sound, traced

from clipseg_np.golden.compare import compare

BEGIN = """Hunt {number}: something in this model is wrong. In Python, in the folder of this file:

    from clipseg_np import trace
    from clipseg_np.golden import compare, numbered, report
    from hunt import hunt

    model, inputs, golden = hunt({number})
    with trace() as activations:
        model(**inputs)
    print(report(compare(golden, numbered(activations)), table=False))

`golden` holds the output of each layer of the right model. Which layer is the first that deviates,
and what stands between it and those before it, which agree? Then say which layer, and which kind:

    python notebooks/exercises/hunt.py {number} LAYER KIND
"""


def fault_of(number: int) -> Fault:
    """The hunts are in another order than the network's layers."""
    return FAULTS[number * 7 % len(FAULTS)]


def hunt(number: int) -> tuple:
    """A model with a fault, inputs, and the right outputs of each layer by name."""
    fault = fault_of(number)
    golden = traced(*sound(fault.folder))
    model, inputs = sound(fault.folder)
    fault.plant(model)
    return model, inputs, golden


def judge(number: int, layer: str, kind: str) -> tuple[bool, str]:
    """Whether layer and kind are right, and words about it."""
    fault = fault_of(number)
    model, inputs, golden = hunt(number)
    rows = {row.name: row for row in compare(golden, traced(model, inputs))}
    if layer not in rows:
        near = get_close_matches(layer, rows, 1) or ["decoder.layers.0.mlp.fc1"]
        return False, f"No layer is called {layer}. A layer is, for example, {near[0]}."
    if rows[layer].fine:
        return False, f"{layer} agrees with the golden trace: the fault is elsewhere."
    if layer != fault.layer:
        return False, f"{layer} deviates, but it is not the first that does."
    if kind not in KINDS:
        return False, f"The layer is right. Of which kind is it: {', '.join(KINDS)}?"
    if kind != fault.kind:
        return False, f"The layer is right, the kind is not: it is not {kind} ({KINDS[kind]})."
    return True, f"right: {fault.plant.__doc__}"


def main(arguments: list[str]) -> int:
    if not arguments:
        print(f"There are {len(FAULTS)} hunts: hunt.py 1 to hunt.py {len(FAULTS)}. The kinds are")
        print("\n".join(f"    {kind:12}{meaning}" for kind, meaning in KINDS.items()))
        return 0
    number = int(arguments[0]) if arguments[0].isdecimal() else 0
    if not 1 <= number <= len(FAULTS) or len(arguments) not in (1, 3):
        print(f"Expected hunt.py NUMBER or hunt.py NUMBER LAYER KIND, NUMBER 1 to {len(FAULTS)}.")
        return 2
    if len(arguments) == 1:
        print(BEGIN.format(number=number))
        return 0
    right, text = judge(number, *arguments[1:])
    print(text)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
