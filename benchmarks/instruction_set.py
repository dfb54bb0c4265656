"""Which instructions the systems use: all that the processor has, or AVX2 imitated.

Libraries read these variables when they are loaded. The caches stay the processor's own. ONNX
Runtime, OpenVINO and code that torch compiles read none of the variables.
"""

import os
import platform
import sys
from pathlib import Path

AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
NAMES = {*AVX2, "OPENBLAS_L2_SIZE"}


def choose(avx2: bool) -> None:
    """Start this program again if a variable is not as it should be."""
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    wanted = others | (AVX2 if avx2 else {})
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def is_imitated() -> bool:
    return AVX2.items() <= os.environ.items()


def instruction_set() -> str:
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text().split()) if file.exists() else set()
    names = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    own = next((name for flag, name in names.items() if flag in flags), platform.machine())
    return f"AVX2, imitated where there is {own}" if is_imitated() else own


def second_level_cache() -> str:
    """Its size for a core, such as "1024K"."""
    file = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    return file.read_text().strip() if file.exists() else "unknown"
