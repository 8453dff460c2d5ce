"""Distillation: layer by layer against the dense model, then end to end, as a resumable job."""
