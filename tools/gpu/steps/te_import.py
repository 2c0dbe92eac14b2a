"""Transformer Engine loads, thinned library and all; a linear layer and a norm of it, both ways, against fp64."""

from pathlib import Path
from typing import Any

import torch
from report import Report, relative


def against_fp64(report: Report, te: Any) -> None:
    torch.manual_seed(0)
    given = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    linear = te.Linear(256, 384, bias=False, params_dtype=torch.bfloat16)
    norm = te.RMSNorm(256, dtype=torch.bfloat16)
    exact = given.detach().double().requires_grad_()
    weight = linear.weight.detach().double()
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + norm.eps)
    for name, found, want in (("linear", linear(given), exact @ weight.T), ("rms_norm", norm(given), normed)):
        given.grad = exact.grad = None
        out, expected = found.square().sum(), want.square().sum()
        out.backward()
        expected.backward()
        errors = [relative(found, want), relative(given.grad, exact.grad)]
        report.note(**{name: errors})
        assert max(errors) < 2e-2, (name, errors)  # bf16 has three digits


def main() -> None:
    report = Report(__doc__ or "")
    if not report.cuda:
        import te_python
        import te_stub

        version = te_stub.install()
        import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]

        linear = te.Linear(256, 384, bias=False, params_dtype=torch.bfloat16, device="cpu")
        norm = te.RMSNorm(256, dtype=torch.bfloat16, device="cpu")
        with te_python.reaching() as kernel:
            norm(torch.ones(8, 256, dtype=torch.bfloat16))
        report.note(transformer_engine=version, linear=list(linear.weight.shape), kernel=kernel[0])
        report.no_kernels("imported with stand-ins for both libraries, a linear layer and a norm made")
    import transformer_engine  # pyright: ignore[reportMissingImports]
    import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]
    import transformer_engine_torch as library  # pyright: ignore[reportMissingImports]

    report.note(
        transformer_engine=transformer_engine.__version__, extension_bytes=Path(str(library.__file__)).stat().st_size
    )
    against_fp64(report, te)


if __name__ == "__main__":
    main()
