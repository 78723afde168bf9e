"""Two tensors are the same by their bits, however they are strided."""

from __future__ import annotations

import torch

from registry.tensors.checks import same_bits


def test_a_tensor_of_one_element_may_have_any_stride() -> None:
    """torch calls it contiguous whatever its stride is, and gives no view of its bytes."""
    one = torch.arange(8.0)[4:5].as_strided((1,), (180,))
    assert one.is_contiguous()
    assert same_bits(one, torch.tensor([one.item()]))
    assert not same_bits(one, torch.tensor([-1.0]))
