"""Remedies for defects of packages we do not own, one a file: what breaks, in which versions, when it can go.

Each file names its PACKAGE and the VERSIONS it was verified against; a test fails when another one is installed.
Shims change modules for the whole process, so Megatron and vLLM never share one.
"""


def install_megatron_cpu() -> None:
    """Make megatron-core run on CPU tensors. Idempotent; call before anything imports megatron.

    The order matters: the CUDA stubs must stand when megatron is imported, the rest mends what it imported.
    """
    from r1mega.runtime.shims import megatron_cuda_device, megatron_cuda_rng

    megatron_cuda_device.apply()
    megatron_cuda_rng.apply()

    from r1mega.runtime.shims import megatron_dispatcher_splits, megatron_uneven_parts

    _mend_megatron()
    megatron_dispatcher_splits.apply()
    megatron_uneven_parts.apply()


def install_megatron_cuda() -> None:
    """Mend what is broken in megatron-core on a GPU too; CUDA itself stays as it is. Idempotent."""
    _mend_megatron()


def _mend_megatron() -> None:
    """Defects that have nothing to do with the device, or that show where Transformer Engine is absent."""
    from r1mega.runtime.shims import (
        megatron_checkpoint_arguments,
        megatron_checkpoint_fp8,
        megatron_checkpoint_processes,
        megatron_expert_bias_padding,
        megatron_mla_te_mock,
        megatron_reduce_noncontiguous,
        megatron_te_general_gemm,
    )

    megatron_te_general_gemm.apply()
    megatron_mla_te_mock.apply()
    megatron_reduce_noncontiguous.apply()
    megatron_expert_bias_padding.apply()
    megatron_checkpoint_processes.apply()
    megatron_checkpoint_arguments.apply()
    megatron_checkpoint_fp8.apply()
