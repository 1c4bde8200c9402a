"""The learner: the DeepSpeed engine, and the Ray actor of one rank."""
