"""Checks what an sdist and a wheel contain: python .ci/distributions.py elman.tar.gz elman.whl"""

import os
import sys
import tarfile
import zipfile

sdist, wheel = sys.argv[1:]

with tarfile.open(sdist) as archive:
    inside = {name.partition("/")[2] for name in archive.getnames()}
for wanted in ("LICENSE", "README.md", "setup.py", "src/elman/_kernels.pyx", "csrc/elman.h", "csrc/cells/lstm.inc",
               "csrc/targets/c.c", "tests/test_reference.py", "tests/csrc/check.c", "tests/csrc/run"):  # fmt: skip
    assert wanted in inside, f"{sdist} lacks {wanted}"
for name in inside:
    assert not name.endswith((".so", ".pyd", ".pyc", ".o")), f"{sdist} has {name}"
    assert not (name.startswith("src/") and name.endswith(".c")), f"{sdist} has {name}, which is generated"

size = os.path.getsize(wheel)
assert size < 2_000_000, f"{wheel} has {size} bytes"
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    (kernels,) = [name for name in names if name.endswith(".so")]
    content = archive.read(kernels)
    requirements = [
        line.decode()
        for line in archive.read(next(name for name in names if name.endswith("/METADATA"))).splitlines()
        if line.startswith(b"Requires-Dist:") and b"extra ==" not in line
    ]
for wanted in ("elman/__init__.py", "elman/py.typed", "elman/_kernels.pyi", "elman/benchmark/command.py"):
    assert wanted in names, f"{wheel} lacks {wanted}"
for name in names:
    assert not name.endswith((".c", ".h", ".inc", ".pyx", ".o")), f"{wheel} has {name}"
    assert name.startswith(("elman/", "elman-")), f"{wheel} has {name}"
for section in (b".debug_info", b".debug_line", b".symtab"):  # names of an ELF file's sections
    assert section not in content, f"{kernels} is not stripped: it has {section.decode()}"
assert len(requirements) == 1 and requirements[0].startswith("Requires-Dist: numpy"), requirements
print(f"sdist {os.path.getsize(sdist)} bytes; wheel {size} bytes, of it {kernels} unpacked {len(content)} bytes")
