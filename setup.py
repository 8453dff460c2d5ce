from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

# Each level is one C file that asks for its own instruction set, so the build needs no -march and one binary runs on
# every processor. Fused multiply-adds are written out where wanted: contraction is off, so that compilers agree.
SOURCES = ["_kernels.pyx", "levels.c", "scalar.c", "avx2.c", "avx512.c", "neon.c", "training.c", "layout.c", "inference.c", "memory.c"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "compress._kernels",
                [f"kernels/{name}" for name in SOURCES],
                depends=sorted(glob("kernels/*.h")),
                extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
                extra_link_args=["-fopenmp"],
            )
        ]
    )
)
