"""What this machine computes on, without torch: NVIDIA's management library and psutil."""

import os

import psutil
import pynvml

GB = 1e9


def default_devices() -> list[str]:
    """Every CUDA device that this process may use, else the CPU."""
    return [f"cuda:{index}" for index in range(len(visible_gpus()))] or ["cpu"]


def memory_lines(devices: list[str]) -> list[tuple[str, float, float]]:
    """Name, used GB and total GB of each device; of the machine for a device without counters."""
    lines = []
    gpus = visible_gpus()
    for device in devices:
        kind, _, index = device.partition(":")
        if kind == "cuda" and int(index or 0) < len(gpus):
            lines.append(_gpu_line(gpus[int(index or 0)]))
        else:
            memory = psutil.virtual_memory()
            lines.append(
                (device.upper(), (memory.total - memory.available) / GB, memory.total / GB)
            )
    return lines


def visible_gpus() -> list[str]:
    """NVML names (index or UUID) in CUDA's order; empty without a driver."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]


def _gpu_line(name: str) -> tuple[str, float, float]:
    """A device that fell off the bus is shown as such: the header must not break the page."""
    try:
        if name.isdecimal():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return pynvml.nvmlDeviceGetName(handle), memory.used / GB, memory.total / GB
    except pynvml.NVMLError:
        return f"GPU {name}", 0.0, 0.0
