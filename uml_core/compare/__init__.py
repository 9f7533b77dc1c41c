"""The fair comparison: what its intervals cover, and when a gain may be claimed."""
