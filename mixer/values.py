"""Which values a setting may have: annotations of the parameters that take them.

A parameter with the annotation `Annotated[float, Range(above=0)] | None` takes a finite number
above 0, or None. `mixer.settings` compares a config with such annotations. An annotation that says
nothing of plain values, such as a class of this program, accepts all.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import inspect
import numbers
import os
import types
import typing
from typing import Annotated, Any

_LARGE = {2**31 - 1: '2**31 - 1', -(2**63): '-2**63', 2**63 - 1: '2**63 - 1'}
_FLOAT32 = 2.0**-126, 2.0**128 - 2.0**104  # the smallest normal and the largest number
_NAMES = {float: 'a number', int: 'an int', bool: 'True or False', str: 'text', type(None): 'None'}


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers within bounds, of which `least` and `most` are allowed, `above` and `below` are not."""

  least: float | None = None
  above: float | None = None
  most: float | None = None
  below: float | None = None

  def accepts(self, value: float) -> bool:
    return (
      (self.least is None or value >= self.least)
      and (self.above is None or value > self.above)
      and (self.most is None or value <= self.most)
      and (self.below is None or value < self.below)
    )

  def describe(self, kind: str) -> str:
    if self.least is not None and self.most is not None:
      return (
        f'{kind} from {_LARGE.get(self.least, self.least)} to {_LARGE.get(self.most, self.most)}'
      )
    bounds = {
      'of at least': self.least,
      'above': self.above,
      'up to': self.most,
      'below': self.below,
    }
    given = [f'{word} {bound}' for word, bound in bounds.items() if bound is not None]
    return f'{kind} {" and ".join(given)}'


@dataclasses.dataclass(frozen=True)
class OneOf:
  """A choice by name."""

  names: Collection[str]

  def accepts(self, value: str) -> bool:
    return value in self.names

  def describe(self, kind: str) -> str:
    return f'one of {sorted(self.names)}'


@dataclasses.dataclass(frozen=True)
class Where:
  """Values for which a function is true; `words` describe them."""

  holds: Callable[[Any], bool]
  words: str

  def accepts(self, value) -> bool:
    return self.holds(value)

  def describe(self, kind: str) -> str:
    return self.words


Count = Annotated[int, Range(least=1, most=2**31 - 1)]
Steps = Annotated[int, Range(least=0, most=2**31 - 1)]
Seed = Annotated[int, Range(least=-(2**63), most=2**63 - 1)]
NotNegative = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, most=1)]
Fraction = Annotated[float, Range(above=0, most=1)]
Rate = Annotated[float, Range(least=0, below=1)]


def accepts(annotation, value) -> bool:
  """Whether a parameter with this annotation takes `value`."""
  origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    limits = [limit for limit in inner[1:] if isinstance(limit, Range | OneOf | Where)]
    return accepts(inner[0], value) and all(limit.accepts(value) for limit in limits)
  if origin in (typing.Union, types.UnionType):
    return any(accepts(part, value) for part in inner)
  kind = origin or annotation
  if kind in (None, type(None)):
    return value is None
  if kind is str:
    return isinstance(value, str | os.PathLike)
  if kind is bool:
    return isinstance(value, numbers.Integral) and value in (0, 1)
  if kind is int:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if kind is float:
    return _is_number(value) and not _rounded(value)
  if kind in (dict, Mapping):
    return isinstance(value, Mapping)
  if kind in (list, tuple, Sequence):
    if annotation == tuple[()]:
      return isinstance(value, list | tuple) and not value
    each = inner[0] if inner else Any
    return isinstance(value, list | tuple) and all(accepts(each, one) for one in value)
  return True


def describe(annotation) -> str:
  """The values of an annotation in words, as in 'an int of at least 1, or None'."""
  origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    words = describe(inner[0])
    for limit in inner[1:]:
      words = limit.describe(words) if isinstance(limit, Range | OneOf | Where) else words
    return words
  if origin in (typing.Union, types.UnionType):
    return ', or '.join(dict.fromkeys(describe(part) for part in inner))
  kind = origin or annotation
  if kind in (dict, Mapping):
    return 'a section'
  if kind in (list, tuple, Sequence):
    return f'a tuple of which each is {describe(inner[0])}' if inner else 'an empty tuple'
  return _NAMES.get(kind, 'another value')


def fault(name: str, annotation, value) -> str | None:
  """What is wrong with a value, in a sentence; None if it is accepted."""
  if annotation is inspect.Parameter.empty or accepts(annotation, value):
    return None
  rounded = _rounded(value) if _is_number(value) else ''
  return f'{name} is {value!r}{rounded and f", {rounded} in float32"}; use {describe(annotation)}.'


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value


def _rounded(value: numbers.Real) -> str:
  """What a number is in float32, if that is infinite or, of another one, 0; '' otherwise."""
  if abs(value) > _FLOAT32[1]:
    return 'infinite'
  return '0' if 0 < abs(value) < _FLOAT32[0] else ''
