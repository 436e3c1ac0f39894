"""edgebuild compiles a trained model and its handler into a small signed bundle for a device.

A handler's source uses this: `function` binds a handler to its trigger, `camera` and `timer` are triggers, `tensor`
states an input that is no camera's frame; `nms` thins out a detector's boxes.
"""

from edgebuild.boxes import nms
from edgebuild.function import camera, function, tensor, timer

__all__ = ["camera", "function", "nms", "tensor", "timer"]
