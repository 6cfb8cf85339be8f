"""Attention: SCA-CNN's conditioned channel and spatial attention."""
