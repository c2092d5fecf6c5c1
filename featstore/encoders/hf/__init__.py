"""transformers audio models as encoders: one module for each way that a family takes audio, and their loading."""
