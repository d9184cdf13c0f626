"""Devices to compile for that this machine does not have: TPU slices and NVIDIA GPUs, in the form their compilers need.

A compile-only topology needs the platform's plug-in: libtpu, or jax's CUDA plug-in (no driver, no GPU). A chip is described
to the GPU compiler by XLA's GpuTargetConfig in protobuf's text form. It is written here from NVIDIA's architecture white
papers (A100 v1.0, H100 v1.04) and the CUDA programming guide, table of compute capabilities.
"""

import importlib.util

from zsjax.parallel.constrain import compiling_for
from zsjax.plan.targets import PlanTarget

_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {per_core} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {optin} cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = dict(per_core=233472, optin=232448, cores=132, fpus=128, clock=1.98, l2=52428800, major=9, minor=0)
_GPUS = {
    "a100-80gb": dict(name="NVIDIA A100-SXM4-80GB", per_core=167936, optin=166912, cores=108, fpus=64, clock=1.41,
                      l2=41943040, major=8, minor=0, memory=85017624576),
    "h100": dict(_HOPPER, name="NVIDIA H100 80GB HBM3", memory=84942979072),
    "h200": dict(_HOPPER, name="NVIDIA H200", memory=150754820096),
}
PLUGINS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_plugins.xla_cuda12",
                                       "jax_plugins.xla_cuda13")}
# Kind -> (environment variable, the flags that launch/env.sh puts there for a run).
FLAGS = {
    "gpu": ("XLA_FLAGS", ("--xla_gpu_enable_latency_hiding_scheduler=true",
                          "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
                          "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728")),
    "tpu": ("LIBTPU_INIT_ARGS", ("--xla_tpu_enable_async_collective_fusion=true",
                                 "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
                                 "--xla_tpu_overlap_compute_collective_tc=true",
                                 "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000")),
}


def has_compiler(kind: str) -> bool:
    """Whether this machine can compile for "tpu" or "gpu"."""
    def there(name):
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return any(map(there, PLUGINS[kind]))


def devices_of(target: PlanTarget):
    """The target's devices, to make a mesh of. The process must run with JAX_PLATFORMS=cpu."""
    from jax.experimental import topologies

    if target.chip.kind == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices
    return topologies.get_topology_desc(platform="cuda", topology_name=target.name, target_config=gpu_description(target),
                                        topology=f"1x1x{target.devices}").devices


def gpu_description(target: PlanTarget) -> str:
    """XLA's GpuTargetConfig of an NVIDIA GPU, in protobuf's text form."""
    return _GPU.format(bandwidth=int(target.chip.bandwidth), **_GPUS[target.name])


def tracing_for(target: PlanTarget):
    """A context in which programs are traced for the target: its platform, its attention kernels."""
    gpu = _GPUS.get(target.name)
    return compiling_for(target.chip.kind, gpu["name"] if gpu else f"TPU {target.name}",
                         capability=(gpu["major"], gpu["minor"]) if gpu else None)
