"""Values read from TOML or JSON against Python annotations."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

_PLAIN: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a table",
    Path: "a path",
    type(None): "none",
}


def type_hints(thing: Any) -> dict[str, Any]:
    """Resolved annotations of a class or function; none where they name what only a type checker imports."""
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a parsed value can be meant by an annotation. An annotation this knows nothing about takes
    anything."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return isinstance(value, (list, tuple)) and len(value) == len(args) and all(map(fits, value, args))
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(fits(item, args[0]) for item in value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, (str, Path))
    if annotation in (list, tuple):
        return isinstance(value, (list, tuple))
    return annotation not in _PLAIN or isinstance(value, annotation)


def expected(annotation: Any) -> str:
    """An annotation in words: "an integer", "a list of 2 numbers"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [expected(arg) for arg in args if arg is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(f'"{arg}"' if isinstance(arg, str) else repr(arg) for arg in args)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} {_plural(args[0])}"
    if origin in (list, tuple):
        return f"a list of {_plural(args[0])}"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def found(value: Any) -> str:
    """A value as a message shows it: `'four' (a string)`."""
    return f"{value!r} ({_PLAIN.get(type(value), type(value).__name__)})"


def _plural(annotation: Any) -> str:
    words = expected(annotation)
    return f"{words.split(' ', 1)[1]}s" if words.startswith(("a ", "an ")) else words
