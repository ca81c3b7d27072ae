"""The torture campaign: whatever can go wrong is tried, with a seed, for as long as is given (`make torture`)."""
