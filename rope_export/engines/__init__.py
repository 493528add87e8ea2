"""TensorRT engines, built from artifacts: with tensorrt for the GPU that is here, and with
tensorrt-rtx ahead of time for GPUs that are not."""

from rope_export.engines.building import build_engine as build_engine
from rope_export.engines.plan import Engine as Engine
