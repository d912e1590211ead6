"""HSTU attention of long sequences in Triton. long_forward and long_backward: as in hstu_packed_triton."""
