"""Stand-ins for CUDA kernels that meta tensors cannot reach: they allocate, keep and free alike, and compute nothing.

transformers looks ``mamba_ssm`` and ``causal_conv1d`` up when a modeling file is imported; without them its layers
loop over the tokens and keep far more. Experts multiply with ``grouped_mm``, which takes fp32 and fp16 too, but as a
meta operator bf16 alone. `installed` puts the functions below in their place.

    causal_conv1d_fn    keeps its input, which is a part of the input projection's output
    selective_scan_fn   keeps what it reads, its result before the gate, and the states at the end of 2,048 tokens each
    mamba_inner_fn      both, and the projections between and behind them; recomputes the convolution and the step size
    grouped_mm          keeps rows and weights; two new gradients

Source, read and not run:
    state-spaces/mamba 2.x mamba_ssm/ops/selective_scan_interface.py ``SelectiveScanFn``, ``MambaInnerFn`` and
    csrc/selective_scan/selective_scan.cpp ``selective_scan_fwd``, ``selective_scan_bwd``;
    Dao-AILab/causal-conv1d 1.x causal_conv1d/causal_conv1d_interface.py ``CausalConv1dFn`` and cpp_functions.py
    ``causal_conv1d_fwd_function``, ``causal_conv1d_bwd_function``; torch 2.13.0 ``grouped_mm``, run in fp32 on the CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

SCAN_CHUNK_TOKENS = 2048  # csrc/selective_scan/selective_scan.cpp, n_chunks
MODELS = ("mamba", "jamba")  # transformers' modeling files that look the kernels up

_grouped_mm = functional.grouped_mm


@contextmanager
def installed() -> Iterator[None]:
    """Let transformers' state-space models use the stand-ins, as if the CUDA packages were there.

    Source:
        transformers 5.23.0 integrations/hub_kernels.py ``use_kernel_func_from_hub_with_fallback``: each modeling file
        holds the functions under these names.
    """
    with ExitStack() as stack:
        for model in MODELS:
            module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
            for name, stand_in in STAND_INS.items():
                stack.enter_context(patch.object(module, name, stand_in))
        stack.enter_context(patch.object(functional, "grouped_mm", grouped_mm))
        yield


def _rows(tensor: Any) -> Any:
    """Tokens of all sequences one after the other: (b, d, s) as (b s, d); a copy where the layout demands one."""
    return tensor.permute(0, 2, 1).reshape(-1, tensor.shape[1])


def _columns(tensor: Any) -> Any:
    """Likewise (b, d, s) as (d, b s)."""
    return tensor.permute(1, 0, 2).reshape(tensor.shape[1], -1)


def _sequences(tensor: Any, length: int) -> Any:
    """Back from (d, b s) to (b, d, s): a view."""
    return tensor.reshape(tensor.shape[0], -1, length).permute(1, 0, 2)


def _states(tensor: Any, length: int) -> Any:
    """B or C as the scan reads them: (b s, n) as (b, 1, n, s), a copy."""
    return tensor.reshape(-1, length, tensor.shape[1]).permute(0, 2, 1).unsqueeze(1).contiguous()


def _even(tensor: Any) -> Any:
    """A copy unless the last dimension is the contiguous one."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _scan(u: Any, delta: Any, a: Any, z: Any) -> tuple[Any, Any, Any]:
    """selective_scan_fwd: result before the gate, states at the chunks' ends, result."""
    chunks = -(-u.shape[-1] // SCAN_CHUNK_TOKENS)
    gated, out = torch.empty_like(z), torch.empty_like(delta)
    return out, a.new_empty(u.shape[0], u.shape[1], chunks, 2 * a.shape[1]), gated


def _scan_backward(
    read: tuple[Any, ...], out: Any, dout: Any, dz: Any | None, *, again: bool
) -> tuple[tuple[Any, ...], Any]:
    """selective_scan_bwd: gradients of u, delta, A, B, C, D, the step's bias and z; and the result, computed again."""
    u, delta, a, b, c, d, z, bias = read
    assert dout.shape == out.shape
    dz = torch.empty_like(z) if dz is None else dz
    recomputed = torch.empty_like(out) if again else out
    du, ddelta, da = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(a)
    db, dc = torch.empty_like(b, dtype=torch.float32), torch.empty_like(c, dtype=torch.float32)
    dd, dbias = torch.empty_like(d), torch.empty_like(bias)
    return (du, ddelta, da, db.to(b.dtype), dc.to(c.dtype), dd, dz, dbias), recomputed


def _convolution_backward(x: Any, weight: Any, bias: Any | None, dx: Any | None) -> tuple[Any, Any, Any | None]:
    """causal_conv1d_bwd_function: gradients of weight and bias in fp32 first."""
    dx = torch.empty_like(x) if dx is None else dx
    dweight = torch.empty_like(weight, dtype=torch.float32)
    dbias = None if bias is None else torch.empty_like(bias, dtype=torch.float32).type_as(bias)
    return dx, dweight.type_as(weight), dbias


class _Grouped(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(ctx: Any, rows: Any, weights: Any) -> Any:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weights)
        ctx.rows = rows.shape
        return rows.new_empty(rows.shape[0], weights.shape[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any]:
        _, weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return weights.new_empty(ctx.rows) if wanted[0] else None, torch.empty_like(weights) if wanted[1] else None


class _Convolution(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any | None) -> Any:
        if x.stride(2) != 1 and x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty_like(x)
        ctx.save_for_backward(x, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any | None, ...]:
        (dout,) = gradients
        x, weight, bias = ctx.saved_tensors
        channels_last = x.stride(1) == 1 and x.stride(2) > 1
        if channels_last and dout.stride(1) != 1:
            dout = dout.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif not channels_last and dout.stride(2) != 1:
            dout = dout.contiguous()
        return _convolution_backward(x, weight, bias, None)


class _Scan(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(ctx: Any, u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, z: Any, bias: Any) -> Any:
        u, delta, b, c, z = (_even(tensor) for tensor in (u, delta, b, c, z))
        out, states, gated = _scan(u, delta, a, z)
        ctx.save_for_backward(u, delta, a, b, c, d, z, bias, states, out)
        return gated

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (dout,) = gradients
        *read, _, out = ctx.saved_tensors
        return _scan_backward(tuple(read), out, _even(dout), None, again=False)[0]


class _Inner(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(
        ctx: Any, xz: Any, kernel: Any, kernel_bias: Any | None, projection: Any, step: Any,
        out_weight: Any, out_bias: Any | None, a: Any, d: Any, bias: Any,
    ) -> Any:  # fmt: skip
        xz = _even(xz)
        length, rank, states = xz.shape[-1], step.shape[1], a.shape[1]
        x, z = xz.chunk(2, dim=1)
        convolved = torch.empty_like(x)
        projected = functional.linear(_rows(convolved), projection)
        delta = _sequences(step @ projected[:, :rank].t(), length)
        b = _states(projected[:, rank : rank + states], length)
        c = _states(projected[:, -states:], length)
        out, ends, gated = _scan(convolved, delta, a, z)
        del convolved, delta
        ctx.save_for_backward(
            xz, kernel, kernel_bias, projected, projection, step, out_weight, a, b, c, d, bias, ends, out
        )
        ctx.biased = out_bias is not None
        return functional.linear(gated.permute(0, 2, 1), out_weight, out_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any | None, ...]:
        (dout,) = gradients
        xz, kernel, kernel_bias, projected, projection, step, out_weight, a, b, c, d, bias, _, out = ctx.saved_tensors
        length, rank, states = xz.shape[-1], step.shape[1], a.shape[1]
        x, z = xz.chunk(2, dim=1)
        dout = _even(dout)
        convolved = torch.empty_like(x)
        delta = _sequences(step @ projected[:, :rank].t(), length)
        dxz = torch.empty_like(xz)
        dx, dz = dxz.chunk(2, dim=1)
        dout = dout.permute(2, 0, 1).reshape(dout.shape[2], -1)
        dy = _sequences(out_weight.t() @ dout, length)
        read = (convolved, delta, a, b, c, d, z, bias)
        (dconvolved, ddelta, da, db, dc, dd, dz, dbias), gated = _scan_backward(read, out, dy, dz, again=True)
        del read
        dout_weight = torch.einsum("eB,dB->ed", dout, _columns(gated))
        dout_bias = dout.sum(dim=(0, 1)) if ctx.biased else None
        dprojected = torch.empty_like(projected)
        dprojected[:, rank : rank + states] = db.squeeze(1).permute(0, 2, 1).reshape(-1, states).contiguous()
        del db
        dprojected[:, -states:] = dc.squeeze(1).permute(0, 2, 1).reshape(-1, states).contiguous()
        del dc
        ddelta = _columns(ddelta)
        dstep = torch.einsum("dB,Br->dr", ddelta, projected[:, :rank])
        dprojected[:, :rank] = torch.einsum("dB,dr->Br", ddelta, step)
        dconvolved = _columns(dconvolved)
        dprojection = torch.einsum("Br,Bd->rd", dprojected, _rows(convolved))
        torch.addmm(dconvolved, projection.t(), dprojected.t(), out=dconvolved)
        _, dkernel, dkernel_bias = _convolution_backward(x, kernel.squeeze(1), kernel_bias, dx)
        return dxz, dkernel.unsqueeze(1), dkernel_bias, dprojection, dstep, dout_weight, dout_bias, da, dd, dbias


def grouped_mm(rows: Any, weights: Any, *, offs: Any) -> Any:
    """Rows of each expert by that expert's matrix."""
    return _grouped_mm(rows, weights, offs=offs) if rows.dtype is torch.bfloat16 else _Grouped.apply(rows, weights)


def causal_conv1d_fn(x: Any, weight: Any, bias: Any | None = None, activation: str | None = None, **_: object) -> Any:
    """A causal convolution over time with its activation in one kernel."""
    return _Convolution.apply(x, weight, bias)


def selective_scan_fn(u: Any, delta: Any, a: Any, b: Any, c: Any, D: Any, z: Any, delta_bias: Any, **_: object) -> Any:
    """The selective scan and its gate in one kernel."""
    return _Scan.apply(u, delta, a, b, c, D, z, delta_bias)


def mamba_inner_fn(
    xz: Any, kernel: Any, kernel_bias: Any | None, projection: Any, step: Any, out_weight: Any,
    out_bias: Any | None, a: Any, b: None, c: None, d: Any, delta_bias: Any, **_: object,
) -> Any:  # fmt: skip
    """All of Mamba-1's mixer behind its input projection."""
    return _Inner.apply(xz, kernel, kernel_bias, projection, step, out_weight, out_bias, a, d, delta_bias)


STAND_INS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "mamba_selective_scan": selective_scan_fn,
    "mamba_inner_fn": mamba_inner_fn,
}
