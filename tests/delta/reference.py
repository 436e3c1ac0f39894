"""SPEC section 12.1 and 12.2 read once more, in plain Python and slowly: what the C decoders are compared with."""

from collections.abc import Callable, Sequence

from edgebuild.core.plan import read_plan

LOGIT = 256
LOGIT_MAX = 12 * LOGIT
HALF = 1 << 21
STEP = 4624189567668517720


def _divided(a: int, b: int) -> int:
    """Rounded to zero, as `/` of the page."""
    return -(-a // b) if a < 0 else a // b


def _powers() -> list[int]:
    value, found = 1 << 62, []
    for _ in range(LOGIT + 1):
        found.append(value >> 32)
        value = value * STEP >> 62
    return found


def _squash() -> list[int]:
    power, found = _powers(), []
    for x in range(-LOGIT_MAX, LOGIT_MAX):
        odds = power[abs(x) % LOGIT] << (abs(x) // LOGIT)
        p = 65536 * odds // (odds + (1 << 30))
        found.append(min(max(65536 - p if x < 0 else p, 1), 65535))
    return found


SQUASH = _squash()


def _logits() -> list[int]:
    x, found = -LOGIT_MAX, []
    for i in range(4096):
        while x < LOGIT_MAX - 1 and SQUASH[x + LOGIT_MAX] < 16 * i + 8:
            x += 1
        found.append(x)
    return found


LOGITS = _logits()


class Counter:
    def __init__(self) -> None:
        self.p, self.n = HALF, 0

    def learn(self, bit: int, limit: int) -> None:
        rate = 131072 // (2 * self.n + 3)
        self.p += ((1 << 22) - 1 - self.p) * rate >> 16 if bit else -(self.p * rate >> 16)
        self.n = min(self.n + 1, limit) if self.n < limit else self.n


class Mixer:
    def __init__(self, inputs: int) -> None:
        self.weights = [65536 // inputs] * inputs


class Table(dict):
    """Counters and mixers that appear when they are first asked for."""

    def __init__(self, make: Callable[[], object]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: object) -> object:
        self[key] = made = self._make()
        return made


class Decoder:
    """The range coder, and what predicts its bits."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._low, self._high, self._value = 0, 0xFFFFFFFF, 0
        for _ in range(4):
            self._value = self._value << 8 | self._next()

    def _next(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    @property
    def complete(self) -> bool:
        return len(self._data) <= self._at <= len(self._data) + 4

    def plain(self, p: int) -> int:
        middle = self._low + ((self._high - self._low) * p >> 16)
        bit = int(self._value <= middle)
        self._low, self._high = (self._low, middle) if bit else (middle + 1, self._high)
        while (self._low ^ self._high) >> 24 == 0:
            self._low = self._low << 8 & 0xFFFFFFFF
            self._high = self._high << 8 & 0xFFFFFFFF | 255
            self._value = (self._value << 8 | self._next()) & 0xFFFFFFFF
        return bit

    def bit(self, mixer: Mixer, counters: Sequence[Counter], limit: int) -> int:
        logits = [LOGITS[counter.p >> 10] for counter in counters]
        mixed = _divided(sum(x * w for x, w in zip(logits, mixer.weights, strict=True)), 65536)
        p = SQUASH[min(max(mixed, 1 - LOGIT_MAX), LOGIT_MAX - 1) + LOGIT_MAX]
        bit = self.plain(p)
        error = (bit << 16) - p
        for i, x in enumerate(logits):
            mixer.weights[i] = min(max(mixer.weights[i] + _divided(x * error * 6, 1 << 18), -(1 << 22)), 1 << 22)
            counters[i].learn(bit, limit)
        return bit


class Number:
    """Numbers of one kind: counters by context and bit, mixers by bit."""

    def __init__(self, decoder: Decoder, models: int, classes: int, limit: int) -> None:
        self._decoder, self._classes, self._limit = decoder, classes, limit
        self.counters = Table(Counter)
        self._mixers = Table(lambda: Mixer(models))

    def _bit(self, contexts: Sequence[object], which: int, mixer: object) -> int:
        counters = [self.counters[i, context, which] for i, context in enumerate(contexts)]
        return self._decoder.bit(self._mixers[mixer, which], counters, self._limit)

    def read(self, contexts: Sequence[object], mixer: object = 0) -> int:
        if not self._bit(contexts, 0, mixer):
            return 0
        negative = self._bit(contexts, 1, mixer)
        rank = 0
        while rank < self._classes - 1 and self._bit(contexts, 2 + rank, mixer):
            rank += 1
        size = rank + 1 if rank < 4 else ((2 + rank % 2) << (rank // 2 - 1)) + 1
        bits = 0 if rank < 4 else rank // 2 - 1
        rest = 0
        for i in range(bits):
            place = 2 + self._classes + 2 * rank + i
            rest = rest << 1 | (self._bit(contexts, place, mixer) if i < 2 else self._decoder.plain(32768))
        return -(size + rest) if negative else size + rest


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _sign(value: int) -> int:
    return 0 if value == 0 else 1 if value < 0 else 2


def _ordered(bits: int) -> int:
    return ~(bits & 0x7FFFFFFF) & 0xFFFFFFFF if bits >> 31 else bits


def _from_ordered(order: int) -> int:
    return ~order & 0xFFFFFFFF | 0x80000000 if order >> 31 else order


class _Weights:
    def __init__(self, data: bytes) -> None:
        self.decoder = Decoder(data)
        self._flags = [(Mixer(1), Counter()) for _ in range(2)]
        self._bytes = Number(self.decoder, 9, 16, 1023)
        self._words = {kind: Number(self.decoder, 4, 64, 255) for kind in ("fine", "step", "f fine", "f step")}
        self._past = [0] * 256
        self._size, self._lean = [0] * 64, [0] * 64
        self.changes: list[int] = []

    def flag(self, which: int) -> int:
        mixer, counter = self._flags[which]
        return self.decoder.bit(mixer, [counter], 255)

    def small(self, old: bytes, tensor: int, *, fresh: bool) -> bytes:
        made = bytearray()
        for place, byte in enumerate(old):
            before = _signed(byte, 8)
            contexts, mixer = self._byte_model(place, before)
            difference = self._bytes.read([(tensor,), *contexts], mixer)
            made.append(((0 if fresh else before) + difference) & 255)
            self._note(place, before, difference)
        return bytes(made)

    def _byte_model(self, place: int, before: int) -> tuple[list[int], int]:
        def back(distance: int) -> int:
            return self._past[(place - distance) % 256]

        lane = place % 64
        one, two, tile = back(1), back(2), back(64)
        row = sum(abs(back(d)) for d in (4, 8, 12, 16))
        long_row = row + sum(abs(back(d)) for d in (20, 24, 28, 32))
        near = sum(abs(back(d)) for d in (1, 2, 3, 4))
        size = self._size[lane].bit_length()
        wide = sum(self._size[lane // 4 * 4 + i] for i in range(4))
        old = 0 if before == 0 else min(1 + abs(before).bit_length(), 8) * 2 - (before < 0)
        leaning = 2 if self._lean[lane] > 24 else 1 if self._lean[lane] < -24 else 0
        several = (
            min(abs(one), 3) * 64
            + min(abs(two), 3) * 16
            + min((abs(back(3)) + abs(back(4))).bit_length(), 3) * 4
            + min(abs(tile), 3)
        )
        tile_sum = sum(back(d) for d in range(4, lane + 1, 4))
        signs = _sign(one) * 81 + _sign(two) * 27 + _sign(tile) * 9 + _sign(before) * 3 + leaning
        contexts = [
            several,
            size * 16 + min(near.bit_length(), 15),
            old * 4 + leaning,
            min(wide.bit_length(), 15) * 17 + old,
            min(long_row.bit_length(), 15) * 17 + old,
            min(row.bit_length(), 15) * 16 + min(size, 15),
            signs,
            (min(abs(tile_sum).bit_length(), 7) * 2 + (tile_sum < 0)) * 16 + lane // 4,
        ]
        return [context % 512 for context in contexts], min(near.bit_length(), 3)

    def _note(self, place: int, before: int, difference: int) -> None:
        lane = place % 64
        self._past[place % 256] = difference
        self._size[lane] += _divided(abs(difference) * 16 - self._size[lane], 8)
        lean = (-difference if before < 0 else difference) * 64 - self._lean[lane]
        self._lean[lane] += _divided(lean, 8)

    def words(self, old: bytes, side: Sequence[int], *, floats: bool) -> bytes:
        fine_kind, step_kind = ("f fine", "f step") if floats else ("fine", "step")
        fine = step = 0
        made = bytearray()
        self.changes = []
        for i in range(len(old) // 4):
            before = int.from_bytes(old[4 * i : 4 * i + 4], "little")
            before = _ordered(before) if floats else before
            fine = self._words[fine_kind].read(self._contexts(fine, 0, side[i]))
            odd = change = 0
            if fine:
                step = self._words[step_kind].read(self._contexts(step, fine, side[i]))
                odd = 2 * step + (1 if step < 0 else -1) << (fine - 1)
                change = 1 + min(abs(step).bit_length(), 15) * 2 + (step < 0)
            self.changes.append(change)
            after = (before + odd) & 0xFFFFFFFF
            made += (_from_ordered(after) if floats else after).to_bytes(4, "little")
        return bytes(made)

    @staticmethod
    def _contexts(last: int, context: int, side: int) -> list[object]:
        return [0, min(abs(last).bit_length(), 31) * 2 + (last < 0), context % 64, side % 64]


def weights(data: bytes, plan: bytes, old: bytes) -> bytes:
    """SPEC 12.1."""
    state, made = _Weights(data), bytearray()
    tensors = [tensor for tensor in read_plan(plan).tensors if tensor.space == "weights"]
    for index, tensor in enumerate(tensors):
        made += bytes(tensor.offset - len(made))
        before = old[tensor.offset : tensor.offset + tensor.nbytes]
        is_words = tensor.dtype in ("int32", "int64", "float32")
        if state.flag(0):
            made += before
            state.changes = [0] * (tensor.nbytes // 4)
        elif is_words:
            made += state.words(before, _side(state, tensors, index, old), floats=tensor.dtype == "float32")
        else:
            made += state.small(before, index, fresh=bool(state.flag(1)))
    assert state.decoder.complete
    return bytes(made) + bytes(len(old) - len(made))


def _side(state: _Weights, tensors: Sequence[object], index: int, old: bytes) -> list[int]:
    tensor = tensors[index]
    last = tensors[index - 1] if index else None
    next_ = tensors[index + 1] if index + 1 < len(tensors) else None
    if tensor.dtype == "float32" and last and (last.dtype, last.nbytes) == ("int32", tensor.nbytes):
        return state.changes
    if tensor.dtype == "int32" and next_ and (next_.dtype, next_.nbytes) == ("float32", tensor.nbytes):
        data = old[next_.offset : next_.offset + next_.nbytes]
        return [int.from_bytes(data[i : i + 4], "little") >> 22 & 63 for i in range(0, len(data), 4)]
    return [0] * (tensor.nbytes // 4)


class _Patch:
    def __init__(self, data: bytes, old: bytes) -> None:
        self._decoder, self._old = Decoder(data), old
        self._numbers = {kind: Number(self._decoder, 2, 64, 255) for kind in ("copy", "extra", "seek")}
        self._last = dict.fromkeys(self._numbers, 0)
        self._counters, self._mixers = Table(Counter), Table(lambda: Mixer(3))
        self._answers = self._change = self._since = 0
        self.made = bytearray()

    def number(self, kind: str) -> int:
        last = abs(self._last[kind]).bit_length()
        self._last[kind] = self._numbers[kind].read([0, last % 32])
        return self._last[kind]

    def _bit(self, mixer: object, *contexts: object) -> int:
        counters = [self._counters[context] for context in contexts]
        return self._decoder.bit(self._mixers[mixer], counters, 255)

    def _tree(self, kind: str, *contexts: object) -> int:
        node = 1
        for _ in range(8):
            node = node << 1 | self._bit((kind, node), *((kind, i, c, node) for i, c in enumerate(contexts)))
        return node & 255

    def change(self, before: int) -> int:
        since = min(self._since.bit_length(), 15)
        contexts = (0, self._answers), (1, before, self._answers & 15), (2, self._change, since)
        changed = self._bit(("changed", self._answers), *contexts)
        self._answers = (self._answers << 1 | changed) & 255
        self._since += 1
        if not changed:
            return 0
        self._change = self._tree("change", 0, before, self._change)
        self._since = 0
        return self._change

    def own(self) -> int:
        one, two = ([*bytes(2), *self.made])[-1], ([*bytes(2), *self.made])[-2]
        return self._tree("own", 0, one, (one << 8 | two) * 0x9E5 % 1024)

    def run(self, size: int) -> bytes:
        cursor = self.number("seek")
        while len(self.made) < size:
            copy, extra = self.number("copy"), self.number("extra")
            for _ in range(copy):
                self.made.append((self._old[cursor] + self.change(self._old[cursor])) & 255)
                cursor += 1
            for _ in range(extra):
                self.made.append(self.own())
            if len(self.made) < size:
                cursor += self.number("seek")
        assert self._decoder.complete
        return bytes(self.made)


def patch(data: bytes, old: bytes, size: int) -> bytes:
    """SPEC 12.2."""
    return _Patch(data, old).run(size)
