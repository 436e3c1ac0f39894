"""The handler: a frame in, the digit and how sure the network is out."""

import tensorflow as tf

import edgebuild as eb

SIDE = 16
"""Side of the network's input in pixels."""

LUMA = (0.299, 0.587, 0.114)


def prepare(frame: tf.Tensor) -> tf.Tensor:
    """uint8 RGB [64, 64, 3] to the network's input, float32 [1, 16, 16, 1] in -1..1: the means of 4x4 pixels."""
    grey = tf.reduce_sum(tf.cast(frame, tf.float32) * tf.constant(LUMA), axis=-1)
    small = tf.nn.avg_pool2d(grey[tf.newaxis, :, :, tf.newaxis], 4, 4, "VALID")
    return small / 127.5 - 1


@eb.function(trigger=eb.camera("front", fps=15, size=(64, 64)), timeout_ms=100)
@tf.function
def classify(frame: tf.Tensor, model: tf.keras.Model) -> dict[str, tf.Tensor]:
    """`label`: int64, 0..9; `confidence`: float32, 0..1."""
    scores = tf.nn.softmax(model(prepare(frame)))[0]
    return {"label": tf.argmax(scores), "confidence": tf.reduce_max(scores)}
