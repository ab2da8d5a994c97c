"""Which parameters are trained, and how fast: frozen ones, and factors on the learning rate."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import re
from typing import Annotated

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from mixer.errors import InputError
from mixer.values import Fraction, Where, accepts

Path = tuple[str, ...]  # of a leaf in the nested dict of parameters
_LISTED = 6  # groups that `Groups.describe` names


def _is_pattern(text) -> bool:
  try:
    return bool(re.compile(text))
  except re.error:
    return False


def _is_multiplier(pair) -> bool:
  return len(pair) == 2 and accepts(Pattern, pair[0]) and accepts(_Factor, pair[1])


Pattern = Annotated[str, Where(_is_pattern, "a regular expression such as 'MixerBlock_[0-5]'")]
_Factor = Annotated[float, Where(lambda factor: factor > 0, 'above 0')]
Multiplier = Annotated[
  Sequence,
  Where(_is_multiplier, "(a regular expression, a number above 0), as in (('head', 10.0),)"),
]


@dataclasses.dataclass(frozen=True)
class Layout:
  """What optimizers know of a model's parameters; `mixer.models.layout` makes it.

  Attributes:
    sizes: path -> number of values of each leaf.
    names: path -> its name in the released layout, as in 'MixerBlock_0/LayerNorm_0/bias'; of a
      leaf that is stacked over the blocks, the name in each block.
    trunk: patterns of the layers from the input on: the stem, then each block.
    matrices: path -> (input axes, output axes) of each kernel between the stem and the head; the
      other axes count independent matrices.
  """

  sizes: Mapping[Path, int] = dataclasses.field(default_factory=dict)
  names: Mapping[Path, Sequence[str]] = dataclasses.field(default_factory=dict)
  trunk: Sequence[str] = ()
  matrices: Mapping[Path, tuple[Sequence[int], Sequence[int]]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def stacked(self) -> frozenset[Path]:
    """The leaves with a leading axis over the blocks."""
    return frozenset(path for path, names in self.names.items() if names[0] != '/'.join(path))


@dataclasses.dataclass(frozen=True)
class Groups:
  """How each parameter is trained.

  Attributes:
    layout: of all parameters.
    frozen: the leaves that are not trained.
    factors: path -> factors on the learning rate: one, or one per block of a stacked leaf. Empty
      if all are 1.
  """

  layout: Layout = dataclasses.field(default_factory=Layout)
  frozen: frozenset[Path] = frozenset()
  factors: Mapping[Path, Sequence[float]] = dataclasses.field(default_factory=dict)

  @property
  def frozen_names(self) -> frozenset[str]:
    """The frozen parameters in the released layout."""
    return frozenset(name for path in self.frozen for name in self.layout.names[path])

  def describe(self) -> str:
    """The number of parameters that are trained, and at which factors; '' if all are alike."""
    sizes, lines = self.layout.sizes, []
    if self.frozen:
      total, count = sum(sizes.values()), sum(sizes[path] for path in self.frozen)
      lines.append(f'{total - count:,} of {total:,} parameters; the other {count:,} are frozen')
    if self.factors:
      counts: dict[float, int] = {}
      for path, factors in self.factors.items():
        for factor in factors:
          counts[factor] = counts.get(factor, 0) + sizes[path] // len(factors)
      words = [f'{factor:.4g} for {counts[factor]:,}' for factor in sorted(counts)]
      if len(words) > _LISTED:
        words = [*words[: _LISTED // 2], '...', *words[-_LISTED // 2 :]]
      lines.append(f'learning rate times {", ".join(words)} parameters ({len(counts)} groups)')
    return '\n'.join(lines)


def matches(pattern: str, name: str) -> bool:
  """Whether a regular expression matches a whole name, or its first parts up to a '/'.

  'MixerBlock_1' matches 'MixerBlock_1/LayerNorm_0/bias' and not 'MixerBlock_10/LayerNorm_0/bias'.
  """
  return re.fullmatch(f'(?:{pattern})(?:/.*)?', name) is not None


def make(
  *,
  layout: Layout,
  freeze: Pattern | Sequence[Pattern] = (),
  lr_mults: Sequence[Multiplier] = (),
  layer_decay: Fraction | None = None,
) -> Groups:
  """The groups of a model's parameters, by `matches` of their names in the released layout.

  Args:
    layout: of the parameters.
    freeze: patterns of parameters that stay as they are: they get no gradient, no optimizer state
      and no weight decay.
    lr_mults: (pattern, factor on the learning rate); the first that matches counts, as in
      big_vision.
    layer_decay: factors that fall towards the input, as in BEiT: with L blocks,
      layer_decay**(L + 1) for the stem (class token and positions too), layer_decay**(L - i) for
      block i from 0 on, and 1 for what follows the blocks. In a ResNet a block is a unit. They
      multiply those of `lr_mults`.

  Raises:
    InputError: a pattern matches nothing, nothing remains to be trained, or blocks that
      `model.scan` stacks are to be frozen in part.
  """
  frozen = _frozen((freeze,) if isinstance(freeze, str) else freeze, layout)
  trained = [path for path in layout.names if path not in frozen]
  _check_multipliers([pattern for pattern, _ in lr_mults], layout, trained)

  def factor(name: str) -> float:
    given = next((factor for pattern, factor in lr_mults if matches(pattern, name)), 1.0)
    depth = next((i for i, layer in enumerate(layout.trunk) if matches(layer, name)), None)
    decayed = 1.0 if depth is None else (layer_decay or 1.0) ** (len(layout.trunk) - depth)
    return given * decayed

  factors = {path: tuple(map(factor, layout.names[path])) for path in trained}
  alike = all(one == 1.0 for some in factors.values() for one in some)
  return Groups(layout, frozen, {} if alike else factors)


def _frozen(patterns: Sequence[str], layout: Layout) -> frozenset[Path]:
  found = set()
  for pattern in patterns:
    if not any(matches(pattern, name) for names in layout.names.values() for name in names):
      raise InputError(f'config.optim.freeze: {_no_match(pattern, layout)}')
  for path, names in layout.names.items():
    hits = [any(matches(pattern, name) for pattern in patterns) for name in names]
    if any(hits) and not all(hits):
      raise InputError(
        f'config.optim.freeze has {names[hits.index(True)]} and not {names[hits.index(False)]}, '
        'which model.scan=True stacks into one array. Freeze all blocks or none, or use '
        'config.model.scan=False.'
      )
    if all(hits):
      found.add(path)
  if found and len(found) == len(layout.names):
    raise InputError(
      f'config.optim.freeze={tuple(patterns)} matches all parameters, so there is nothing to train.'
    )
  return frozenset(found)


def _check_multipliers(patterns: Sequence[str], layout: Layout, trained: Sequence[Path]) -> None:
  names = [name for path in trained for name in layout.names[path]]
  for i, pattern in enumerate(patterns):
    rest = [name for name in names if not any(matches(other, name) for other in patterns[:i])]
    if any(matches(pattern, name) for name in rest):
      continue
    if any(matches(pattern, name) for names in layout.names.values() for name in names):
      raise InputError(
        f'config.optim.lr_mults: {pattern!r} has no effect; what it matches is frozen, or an '
        'earlier pattern matches it too.'
      )
    raise InputError(f'config.optim.lr_mults: {_no_match(pattern, layout)}')


def _no_match(pattern: str, layout: Layout) -> str:
  parts = {name.rpartition('/')[0] or name for names in layout.names.values() for name in names}
  known = {re.sub(r'\d+', 'N', '/'.join(part.split('/')[:2])) for part in parts}
  return (
    f'{pattern!r} matches no parameter. A pattern is a regular expression for a name or its first '
    f"parts, as in 'stem'; the names begin with {', '.join(sorted(known))}."
  )


def divide(params: Mapping, chosen: Collection[Path]) -> tuple[Mapping, Mapping]:
  """(the parameters without the chosen leaves, the chosen leaves), both as nested dicts."""
  if not chosen:
    return params, {}
  flat = traverse_util.flatten_dict(params)
  rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
  found = {path: leaf for path, leaf in flat.items() if path in chosen}
  return traverse_util.unflatten_dict(rest), traverse_util.unflatten_dict(found)


def merge(some: Mapping, others: Mapping) -> Mapping:
  """The inverse of `divide`."""
  if not others:
    return some
  flat = traverse_util.flatten_dict(some) | traverse_util.flatten_dict(others)
  return traverse_util.unflatten_dict(flat)


def scale_by_factors(factors: Mapping[Path, Sequence[float]]) -> optax.GradientTransformation:
  """Multiplies each leaf by its factor, or the blocks of a stacked leaf each by their own."""

  def scale(path: Path, leaf: jax.Array) -> jax.Array:
    if len(set(factors[path])) == 1:
      return leaf * factors[path][0]
    return leaf * jnp.asarray(factors[path], leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))

  def update(updates, params=None):
    flat = traverse_util.flatten_dict(updates)
    return traverse_util.unflatten_dict({path: scale(path, leaf) for path, leaf in flat.items()})

  return optax.stateless(update)


def per_block(
  stateless: optax.GradientTransformation, stacked: Collection[Path]
) -> optax.GradientTransformation:
  """A transformation without state, on each block of the stacked leaves alone."""

  def one(updates, params):
    return stateless.update(updates, optax.EmptyState(), params)[0]

  def update(updates, params=None):
    plain, blocks = zip(divide(updates, stacked), divide(params, stacked), strict=True)
    return merge(one(*plain), jax.vmap(one)(*blocks)) if blocks[0] else one(updates, params)

  return optax.stateless(update)
