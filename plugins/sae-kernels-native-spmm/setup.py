"""The extension: pybind11, and the header that sae-kernels carries."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

from sae_kernels.kernels.native import get_include

headers = [str(header) for header in Path(get_include()).rglob("*.h")]  # another kernel table: build again
extension = Pybind11Extension(
    "sae_kernels_native_spmm._native", ["spmm.cpp"], include_dirs=[get_include()], depends=headers, cxx_std=17
)
setup(ext_modules=[extension], cmdclass={"build_ext": build_ext})
