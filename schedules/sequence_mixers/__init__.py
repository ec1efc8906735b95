"""Recurrent mixers of language models: causal convolution, selective scan, gated delta rule, each with its state."""
