"""Bytes -> arrays, within caps: one file per kind of media, which alone knows the decoder."""
