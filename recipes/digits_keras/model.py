"""A small convolutional network for 16x16 digits, and its training."""

import numpy as np
import tensorflow as tf
from function import SIDE, classify, prepare

from edgebuild.core.calibration import find_set, load_set

layers = tf.keras.layers

EPOCHS = 30
BATCH = 32
LEARNING_RATE = 4e-3


def build() -> tf.keras.Model:
    """float32 [N, 16, 16, 1] in -1..1 to logits [N, 10]."""
    picture = tf.keras.Input((SIDE, SIDE, 1), name="picture")
    x = _normalized(layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(picture))
    for channels, stride in ((64, 1), (64, 1), (128, 2)):
        y = _normalized(layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x))
        y = _normalized(layers.Conv2D(channels, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return tf.keras.Model(picture, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _normalized(x: tf.Tensor) -> tf.Tensor:
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))


def train(seed: int) -> tf.keras.Model:
    """Trains on the digits' training part, seen through the handler's own preprocessing and shifted at random."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    images, labels = _training_data()
    network = build()
    steps = EPOCHS * -(-len(images) // BATCH)
    network.compile(
        tf.keras.optimizers.AdamW(tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps), weight_decay=1e-2),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed).batch(BATCH)
    network.fit(data.map(lambda x, y: (_shifted(x, seed), y)), epochs=EPOCHS, verbose=0, shuffle=False)
    return network


def _training_data() -> tuple[np.ndarray, np.ndarray]:
    samples = list(load_set(find_set("digits")).labelled(classify.inputs))
    images = np.concatenate([prepare(tf.constant(sample["frame"])).numpy() for sample, _ in samples])
    return images, np.array([label for _, label in samples])


def _shifted(images: tf.Tensor, seed: int) -> tf.Tensor:
    """The batch moved by up to 2 pixels, background filled in."""
    padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]], constant_values=-1.0)
    return tf.image.random_crop(padded, tf.shape(images), seed=seed)
