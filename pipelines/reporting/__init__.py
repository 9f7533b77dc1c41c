"""What a person reads: the answer in words, tables, plots, the HTML report, provenance."""
