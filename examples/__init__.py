"""Short scripts that train rnnfast on real and made-up sequences: python -m examples.classify, and so on."""
