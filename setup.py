from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

# Each level is one C file that asks for its own instruction set, so the build needs no -march and one binary runs on
# every processor; against Python's limited API it serves every version from 3.11 on. Fused multiply-adds are written
# out where wanted: contraction is off, so that compilers agree.
LEVELS = ["scalar", "avx2", "avx512", "avx512_vnni", "neon"]
C_FILES = ["levels", *LEVELS, "training", "layout", "inference", "linear", "memory", "arena"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "compress._kernels",
                ["kernels/_kernels.pyx", *(f"kernels/{name}.c" for name in C_FILES)],
                define_macros=[("CYTHON_LIMITED_API", "1"), ("Py_LIMITED_API", "0x030B0000")],
                py_limited_api=True,
                depends=sorted(glob("kernels/*.h")),
                extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
                extra_link_args=["-fopenmp"],
            )
        ]
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
