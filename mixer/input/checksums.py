"""CRC-32C, with which TFRecord files guard what they hold, at the price of some microseconds.

google-crc32c computes it where that is installed (requirements.txt has it), NumPy otherwise: the
same number, 10 to 20 times slower.
"""

import functools

import numpy as np

try:
  import google_crc32c as _compiled
except ImportError:
  _compiled = None

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its coefficient of x^31 in the lowest bit
# x^6777 = x^484 + x^100 + 1 modulo the polynomial. Squared it holds for twice the exponents, and so
# for bytes in place of bits, and for 2, 4, 8... times as many: with it a message's first bytes are
# folded onto later ones, thousands at once, and the remainder stays.
_TOP, _REST = 6777, (484, 100, 0)


def masked(payload: bytes) -> int:
  """The checksum of a TFRecord's payload as it is stored: CRC-32C, rotated, plus a constant."""
  fast = _compiled is not None and _compiled.implementation == 'c'
  return int(_mask(np.uint32(_compiled.value(payload) if fast else _folded(payload))))


def masked_lengths(lengths: np.ndarray) -> np.ndarray:
  """The same, uint32 (n,), for the eight bytes of each of the uint64 `lengths` (n,)."""
  table = _byte_table()
  rest = np.full(lengths.shape, 0xFFFFFFFF, np.uint32)
  for column in lengths.astype('<u8').view(np.uint8).reshape(-1, 8).T:
    rest = (rest >> np.uint32(8)) ^ table[(rest & np.uint32(0xFF)) ^ column]
  return _mask(~rest)


def _mask(crc):
  with np.errstate(over='ignore'):  # it counts modulo 2^32
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _folded(payload: bytes) -> int:
  """CRC-32C by NumPy: folds the message onto its last `_TOP` bytes, looks up those."""
  if len(payload) < 4:  # too short for the four bytes of ones that the remainder starts from
    return _one_by_one(payload)
  size = max(len(payload), _TOP)
  message = np.zeros(size, np.uint8)
  begin = size - len(payload)
  message[begin:] = np.frombuffer(payload, np.uint8)
  message[begin : begin + 4] ^= np.uint8(0xFF)
  start, stride = 0, 1 << max((size // _TOP).bit_length() - 1, 0)
  while stride:
    end = size - _TOP * stride
    while start < end:
      stop = min(end, start + (_TOP - _REST[0]) * stride)
      for exponent in _REST:
        shift = (_TOP - exponent) * stride
        onto = message[start + shift : stop + shift]
        np.bitwise_xor(onto, message[start:stop], onto)
      start = stop
    stride //= 2
  return int(np.bitwise_xor.reduce(_place_table().take(message[start:] + _places()))) ^ 0xFFFFFFFF


def _one_by_one(payload: bytes) -> int:
  rest, table = 0xFFFFFFFF, _byte_table()
  for byte in payload:
    rest = (rest >> 8) ^ int(table[(rest ^ byte) & 0xFF])
  return rest ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> np.ndarray:
  """The remainder of each byte, uint32 (256,)."""
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> 1)
  return table


@functools.cache
def _place_table() -> np.ndarray:
  """The remainders of each byte at each of the last `_TOP` places, uint32 (_TOP * 256,)."""
  table, last = np.empty((_TOP, 256), np.uint32), _byte_table()
  table[-1] = last
  for place in range(_TOP - 2, -1, -1):
    after = table[place + 1]
    table[place] = (after >> np.uint32(8)) ^ last[after & np.uint32(0xFF)]
  return table.ravel()


@functools.cache
def _places() -> np.ndarray:
  return 256 * np.arange(_TOP)
