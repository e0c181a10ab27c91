"""Which number format a device trains fastest in."""

from __future__ import annotations

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """``bf16`` or ``fp32`` for ``auto``: bf16 only where the hardware multiplies it natively.

    Without such hardware bfloat16 is emulated and slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if processor_has_bf16() else "fp32"
    return "fp32"


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context for a resolved precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
