"""The jobs on Ray: one file = one job = one `uml` verb = one `ray job submit` entrypoint."""
