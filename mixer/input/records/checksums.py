"""CRC-32C, with which TFRecord files guard what they hold."""

import google_crc32c


def masked(payload: bytes) -> int:
  """The checksum of some bytes as a TFRecord stores it: CRC-32C, rotated, plus a constant."""
  crc = google_crc32c.value(payload)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
