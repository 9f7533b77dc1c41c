"""The suites of `uml bench`: one file = one suite, each figure a ratio within one run."""
