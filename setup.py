from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
                "compress._kernels",
                ["kernels/_kernels.pyx"],
                extra_compile_args=["-O3", "-g0", "-fopenmp", "-std=c11"],
                extra_link_args=["-fopenmp"],
            )
        ]
    )
)
