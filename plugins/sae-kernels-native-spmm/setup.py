"""The extension: pybind11, and the header that sae-kernels carries."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

from sae_kernels.kernels.native import get_include

extension = Pybind11Extension("sae_kernels_native_spmm._native", ["spmm.cpp"], include_dirs=[get_include()], cxx_std=17)
setup(ext_modules=[extension], cmdclass={"build_ext": build_ext})
