"""Methods over frozen features: many fits at once, closed forms."""
