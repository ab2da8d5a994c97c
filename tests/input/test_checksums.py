import numpy as np
import pytest

from mixer.input.records import record_index


def crc32c(payload):
  """Bit by bit, from the polynomial 0x1EDC6F41 as it is printed (RFC 3720, appendix B.4)."""
  rest = 0xFFFFFFFF
  for byte in payload:
    for bit in range(8):  # the lowest bit of a byte comes first
      rest ^= (byte >> bit & 1) << 31
      rest = (rest << 1 ^ (0x11EDC6F41 if rest >> 31 else 0)) & 0xFFFFFFFF
  return int(f'{rest ^ 0xFFFFFFFF:032b}'[::-1], 2)


def masked(crc):
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Of RFC 3720, and the usual one.
KNOWN = {
  bytes(32): 0x8A9136AA,
  b'\xff' * 32: 0x62A8AB43,
  bytes(range(32)): 0x46DD794E,
  b'123456789': 0xE3069283,
  b'': 0,
}


@pytest.mark.parametrize('payload', KNOWN)
def test_known_values(payload):
  assert crc32c(payload) == KNOWN[payload]
  assert record_index.masked_crc(payload) == masked(KNOWN[payload])


def test_what_tensorflow_writes(tmp_path):
  tf = pytest.importorskip('tensorflow')
  payload = np.random.default_rng(0).bytes(50_000)
  with tf.io.TFRecordWriter(str(tmp_path / 'file')) as writer:
    writer.write(payload)
  stored = (tmp_path / 'file').read_bytes()
  assert record_index.masked_crc(payload).to_bytes(4, 'little') == stored[-4:]
  assert record_index.masked_crc(stored[:8]).to_bytes(4, 'little') == stored[8:12]
