"""Checkpoints: their files, copies at a URL, the state of the sampler, and the point where a run resumes."""
