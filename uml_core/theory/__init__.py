"""The linear-Gaussian theory of unpaired data and the experiment that goes with it.

`fisher` (who knows what), `exchange` (what a sample is worth), `statements` and `counterexamples`
(the paper's claims checked by number), `measured` (Monte Carlo), `gaussian` (the experiment),
`figure`. Source: paper, section 3.1, appendices C and E.14.
"""
