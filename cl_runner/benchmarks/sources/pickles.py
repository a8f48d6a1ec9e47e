"""The pickles that some archives are made of, read as what they should hold: arrays, texts, numbers, lists, dicts."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import numpy as np


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


_reconstruct: Any = np.empty(0).__reduce__()[0]
_frombuffer: Any = np.empty(1).__reduce_ex__(5)[0]
_KNOWN = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    """Finds nothing but what arrays are built with: no other class is imported, no other function called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return _KNOWN[module, name]


def read_arrays(content: bytes) -> dict[str, Any]:
    """Returns the dict of arrays, texts, numbers and lists that a pickle of Python 2 or 3 holds.

    Raises:
        ValueError: it is no such pickle, or asks for anything else; nothing of it was run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy 2.4 warns of how arrays were pickled in 2009
            found = _Reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged one fails anywhere
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found
