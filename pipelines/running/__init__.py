"""How a job runs: Ray session, data of a recipe, worker group, feeds, progress."""
