import numpy as np
import pytest

from mixer.input import checksums


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


@pytest.fixture(params=['numpy', 'google_crc32c'])
def implementation(request, monkeypatch):
  if request.param == 'numpy':
    monkeypatch.setattr(checksums, '_compiled', None)
  else:
    monkeypatch.setattr(checksums, '_compiled', pytest.importorskip('google_crc32c'))


# Of RFC 3720, and the usual one.
KNOWN = {
  bytes(32): 0x8A9136AA,
  b'\xff' * 32: 0x62A8AB43,
  bytes(range(32)): 0x46DD794E,
  b'123456789': 0xE3069283,
  b'': 0,
}


@pytest.mark.parametrize('payload', KNOWN)
def test_known_values(implementation, payload):
  assert crc32c(payload) == KNOWN[payload]
  assert checksums.masked(payload) == masked(KNOWN[payload])


@pytest.mark.parametrize('size', [1, 3, 4, 5, 300, 6776, 6777, 6778, 13_554, 13_555, 40_000])
def test_any_length(implementation, size):
  payload = np.random.default_rng(size).bytes(size)
  assert checksums.masked(payload) == masked(crc32c(payload))


def test_lengths_as_eight_bytes():
  lengths = np.array([0, 1, 255, 110_000, 2**40 + 3], np.uint64)
  expected = [masked(crc32c(int(length).to_bytes(8, 'little'))) for length in lengths]
  assert checksums.masked_lengths(lengths).tolist() == expected


def test_what_tensorflow_writes(implementation, tmp_path):
  tf = pytest.importorskip('tensorflow')
  payload = np.random.default_rng(0).bytes(50_000)
  with tf.io.TFRecordWriter(str(tmp_path / 'file')) as writer:
    writer.write(payload)
  stored = (tmp_path / 'file').read_bytes()
  assert checksums.masked(payload).to_bytes(4, 'little') == stored[-4:]
  length = checksums.masked_lengths(np.array([50_000], np.uint64))
  assert length.tobytes() == stored[8:12]
