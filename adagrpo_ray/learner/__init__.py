"""Floor 2: the DeepSpeed learner, the adaptive sampler, and the Ray actor of one rank."""
