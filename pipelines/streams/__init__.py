"""Streams of unpaired samples: shards -> plan -> Ray Data -> decoded batches."""
