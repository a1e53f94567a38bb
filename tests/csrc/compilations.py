"""Prints what setup.py compiles from csrc/, one file a line: the name of its object, then the compiler's arguments.

For another machine: _PYTHON_HOST_PLATFORM=linux-aarch64. Flags given here come last, so that they win.
"""

import pathlib
import runpy
import sys

root = pathlib.Path(__file__).parents[2]
for folder, source, macros, flags in runpy.run_path(str(root / "setup.py"))["compilations"]():
    name = "_".join(filter(None, (folder, pathlib.Path(source).stem)))
    print(f"{name}.o", *flags, *(f"-D{macro}" for macro, _ in macros), *sys.argv[1:], source)
