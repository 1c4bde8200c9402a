"""Checkpoints: their files, copies at a URL, the sampler's state, and where a run resumes."""
