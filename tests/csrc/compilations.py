"""Prints what setup.py compiles from csrc/, one file a line: the name of its object, then the compiler's arguments.

usage: compilations.py WITHOUT [FLAG ...]

WITHOUT names an instruction set that is left out; '' leaves out none. Flags come last, so that they win. For another
machine: _PYTHON_HOST_PLATFORM=linux-aarch64.
"""

import pathlib
import runpy
import sys

without, *given = sys.argv[1:]
root = pathlib.Path(__file__).parents[2]
for folder, source, macros, flags in runpy.run_path(str(root / "setup.py"))["compilations"]():
    if pathlib.Path(source).stem == without:
        continue
    defined = [f"-D{macro}" for macro, _ in macros if macro != f"ELMAN_HAVE_{without.upper()}"]
    name = "_".join(filter(None, (folder, pathlib.Path(source).stem)))
    print(f"{name}.o", *flags, *defined, *given, source)
