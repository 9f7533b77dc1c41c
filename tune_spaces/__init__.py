"""Search spaces over modality mixes: one file = one space. Start with `base`."""
