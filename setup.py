"""Builds the one extension module: every kernel once per instruction set and dtype, then Cython's part around them.

ISA flags stand on targets/*.c alone, so that no instruction of theirs can leak into code that runs before dispatch.
"""

import os
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = {
    "avx2": (["-mavx2", "-mfma"], ["/arch:AVX2"]),
    "avx512": (["-mavx512f", "-mavx512dq", "-mavx2", "-mfma"], None),  # not with MSVC
}
ARM = {"neon": ([], None)}


def instruction_sets():
    """name -> (flags of GCC and clang, flags of MSVC or None where it can't) for the machine that is built for."""
    machine = os.environ.get("_PYTHON_HOST_PLATFORM") or os.environ.get("ARCHFLAGS") or platform.machine()
    machine = machine.lower()
    sets = {"c": ([], [])}
    if re.search(r"\bi\d86", machine):
        sets["c"] = (["-msse2", "-mfpmath=sse"], [])  # the x87 unit rounds twice
    if "x86_64" in machine or "amd64" in machine:
        sets |= X86
    elif "arm64" in machine or "aarch64" in machine:
        sets |= ARM
    return sets


# Of every file of csrc/; no product may become a fused one behind our back, no sum may be reordered.
GCC_FLAGS = ["-O3", "-std=c11", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
GCC_FLAGS += ["-fno-fast-math", "-fvisibility=hidden"]  # the first against CFLAGS=-ffast-math
GCC_FLAGS += ["-fno-wrapv"]  # against Python's own -fwrapv, with which GCC leaves some loops without vectors
MSVC_FLAGS = ["/O2", "/GL-", "/fp:precise", "/std:c11"]


def compilations(msvc=False):
    """(folder for the object, source, macros, flags) of every file of csrc/ that is compiled."""
    sets = {name: flags[msvc] for name, flags in instruction_sets().items() if flags[msvc] is not None}
    have = [(f"ELMAN_HAVE_{name.upper()}", None) for name in sets]
    common = MSVC_FLAGS if msvc else GCC_FLAGS
    for source in ("csrc/schedule.c", "csrc/stack.c", "csrc/pool.c", "csrc/team.c", "csrc/dispatch.c"):
        yield "", source, have, common
    for name, flags in sets.items():
        yield "f32", f"csrc/targets/{name}.c", [], common + flags
        yield "f64", f"csrc/targets/{name}.c", [("ELMAN_F64", None)], common + flags


if sys.platform == "darwin":  # a universal interpreter would compile each file for both machines at once
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


class BuildKernels(build_ext):
    def initialize_options(self):
        super().initialize_options()
        self.cython_c_in_temp = True  # or the generated C would lie beside the .pyx and come into the sdist

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"

        def compile(job):
            folder, source, macros, flags = job
            output_dir = os.path.join(self.build_temp, folder)
            return self.compiler.compile([source], output_dir, macros, extra_postargs=flags)

        self.force = True  # the objects are new, whatever the times of the sources say of the library
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = sum(pool.map(compile, compilations(msvc)), [])
        for extension in self.extensions:
            extension.extra_objects = objects
            extension.extra_compile_args = MSVC_FLAGS if msvc else GCC_FLAGS
            if not msvc:
                extension.extra_link_args = ["-pthread", "-lm", "-fno-fast-math"] + (
                    ["-Wl,-s"] if sys.platform == "linux" else []
                )
        super().build_extensions()


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildKernels},
        ext_modules=[
            Extension(
                "elman._kernels",
                ["src/elman/_kernels.pyx"],
                include_dirs=["csrc"],
                depends=glob("csrc/**/*.*", recursive=True),
            )
        ],
    )
