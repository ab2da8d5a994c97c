"""Trees of parameters: flat or nested names, and whether two trees have the same shapes."""

from collections.abc import Mapping

import jax
import numpy as np

from mixer.errors import InputError


def flatten(tree: Mapping) -> dict[str, np.ndarray]:
  """{'a': {'b': x}} -> {'a/b': x}, in sorted order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {'/'.join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, np.ndarray]) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}.

  Raises:
    InputError: a name that is also the beginning of others, as 'a' beside 'a/b'.
  """
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise InputError(f'there is an array {parent} and one {name} within it.')
    if last in node:
      raise InputError(f'there is an array {name} and others within it.')
    node[last] = leaf
  return tree


def check(params: Mapping, expected: Mapping, source: str) -> None:
  """Raises one InputError that lists every name and shape in which the two trees differ.

  Args:
    params: the tree that was found.
    expected: has anything with a shape as leaves, such as the result of `jax.eval_shape`.
    source: where `params` come from, for the message.
  """
  have = {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
  want = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
  faults = [f'missing   {n} {want[n]}' for n in sorted(want.keys() - have.keys())]
  faults += [f'surplus   {n} {have[n]}' for n in sorted(have.keys() - want.keys())]
  faults += [
    f'mismatch  {n} has {have[n]}, the model needs {want[n]}'
    for n in sorted(want.keys() & have.keys())
    if have[n] != want[n]
  ]
  if faults:
    raise InputError(
      f'{source} does not fit the model in {len(faults)} of {len(want)} parameters:\n'
      + '\n'.join(f'  {fault}' for fault in faults)
      + '\nChoose the model, image size and class count that the file was made with.'
    )
