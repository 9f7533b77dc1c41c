"""Speed of the method, as ratios against plain PyTorch measured in the same run."""
