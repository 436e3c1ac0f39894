"""What a handler's source says about itself. Light: importing it imports no framework.

    import edgebuild as eb

    @eb.function(trigger=eb.camera("front", fps=15, size=(640, 480)), timeout_ms=500)
    def detect(frame, model):          # frame: uint8 tensor [480, 640, 3], RGB
        return {"boxes": model(frame.float().permute(2, 0, 1)[None] / 255)}

The parameter `model` receives the recipe's network; the others are the function's inputs. A handler returns a dict of
tensors by output name, or one tensor, which is then named `output`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgebuild.core.errors import RecipeError
from edgebuild.core.manifest import DTYPES, MAX_RANK, Tensor, Trigger
from edgebuild.core.toml import did_you_mean

MODEL_PARAMETER = "model"
MAX_FPS = 1000


@dataclass(frozen=True)
class Camera:
    """Frames of a camera: uint8 RGB [height, width, 3], `fps` a second. `device` is the camera's name on the device."""

    device: str
    fps: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Timer:
    """Every `seconds` seconds, on the latest input."""

    seconds: float


@dataclass(frozen=True)
class Function:
    """A decorated handler. Calling it calls the handler."""

    handler: Callable[..., Any]
    trigger: Camera | Timer | None
    model: str | None
    timeout_ms: int | None
    inputs: tuple[Tensor, ...]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.handler(*arguments, **named)

    @property
    def name(self) -> str:
        return self.handler.__name__

    @property
    def manifest_trigger(self) -> Trigger:
        """The trigger as the manifest notes it."""
        if isinstance(self.trigger, Camera):
            return Trigger("camera", self.trigger.fps)
        if isinstance(self.trigger, Timer):
            return Trigger("timer", round(self.trigger.seconds * 1000))
        return Trigger()


def camera(device: str, *, fps: int, size: tuple[int, int] | None = None) -> Camera:
    """A camera as the trigger; `size` is (width, height) in pixels of the frames that the handler takes."""
    if type(fps) is not int or not 1 <= fps <= MAX_FPS:
        raise RecipeError(f"camera('{device}'): fps must be an integer from 1 to {MAX_FPS}, not {fps!r}", "e.g. fps=15")
    if size is not None and (len(size) != 2 or any(type(side) is not int or side < 1 for side in size)):
        raise RecipeError(
            f"camera('{device}'): size must be (width, height) in pixels, not {size!r}", "e.g. size=(640, 480)"
        )
    return Camera(device, fps, size)


def timer(*, seconds: float) -> Timer:
    """A period in seconds as the trigger, at least a millisecond."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= 1e6:
        raise RecipeError(f"timer: seconds must be a number from 0.001 to 1000000, not {seconds!r}", "e.g. seconds=1.0")
    return Timer(float(seconds))


def tensor(dtype: str, *shape: int) -> Tensor:
    """An input that is not a camera's frame: `inputs={"frame": eb.tensor("uint8", 480, 640, 3)}`."""
    if dtype not in DTYPES:
        raise RecipeError(f"tensor: unknown dtype '{dtype}'", did_you_mean(dtype, DTYPES))
    if len(shape) > MAX_RANK or any(type(side) is not int or side < 1 for side in shape):
        raise RecipeError(
            f"tensor: shape must be at most {MAX_RANK} positive integers, not {shape!r}", "e.g. shape=(1, 3)"
        )
    return Tensor("", dtype, shape)


def function(
    *,
    trigger: Camera | Timer | None = None,
    model: str | None = None,
    timeout_ms: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Callable[[Callable[..., Any]], Function]:
    """Binds a handler to its trigger, its model (optional: the recipe's name), its time limit and its inputs.

    The first input of a camera's handler is the frame, with the camera's size; every other input is stated in `inputs`.
    """
    if timeout_ms is not None and (type(timeout_ms) is not int or timeout_ms < 1):
        raise RecipeError(
            f"function: timeout_ms must be a positive integer, not {timeout_ms!r}", "leave it out for none"
        )

    def bind(handler: Callable[..., Any]) -> Function:
        return Function(handler, trigger, model, timeout_ms, _inputs(handler, trigger, dict(inputs or {})))

    return bind


def _inputs(
    handler: Callable[..., Any], trigger: Camera | Timer | None, stated: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    names = [name for name in inspect.signature(handler).parameters if name != MODEL_PARAMETER]
    for name in stated:
        if name not in names:
            raise RecipeError(
                f"{handler.__name__}: inputs names '{name}', which is no parameter", did_you_mean(name, names)
            )
    if names and names[0] not in stated and isinstance(trigger, Camera) and trigger.size:
        width, height = trigger.size
        stated[names[0]] = Tensor("", "uint8", (height, width, 3))
    missing = [name for name in names if name not in stated]
    if missing:
        raise RecipeError(
            f"{handler.__name__}: the shape of input '{missing[0]}' is not stated",
            f'give the camera a size, or the function inputs={{"{missing[0]}": eb.tensor("uint8", 480, 640, 3)}}',
        )
    if not names:
        raise RecipeError(f"{handler.__name__}: takes no input", "a handler is def NAME(frame, model)")
    return tuple(Tensor(name, stated[name].dtype, stated[name].shape) for name in names)
