"""Trainers and callbacks: super-network training, whole checkpoints, recording, search while training."""
