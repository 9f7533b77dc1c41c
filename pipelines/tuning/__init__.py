"""How a sweep runs: trials, their data, the search, the journal, the conclusion."""
