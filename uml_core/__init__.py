"""The Unpaired Multimodal Learner (arXiv 2510.08492): the method, in PyTorch alone.

Nothing in this package imports Ray or MLflow; it can be read, tested and used by itself.
"""
