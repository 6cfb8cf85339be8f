"""Image captioning with SCA-CNN: spatial and channel-wise attention in the layers of a CNN (arXiv 1611.05594)."""

__version__ = "0.1.0"
