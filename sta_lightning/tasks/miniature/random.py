"""Counter-based random numbers that are the same bits on every machine.

Each image owns a 64-bit key, a hash of (suite version, task, split, index). The numbers that it
draws are hashes of (key, counter): whole-number arithmetic only, so neither NumPy's version nor the
processor can change them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FNV_BASIS, _FNV_PRIME, _WORD = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def mix(values: Keys) -> Keys:
    """Hash 64-bit words element by element (the output function of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def image_keys(name: str, indices: Integers) -> Keys:
    """Return one key per index under a name, ``"1/digits/train"``: FNV-1a, then SplitMix64."""
    word = _FNV_BASIS
    for byte in name.encode():
        word = ((word ^ byte) * _FNV_PRIME) & _WORD
    return mix(np.uint64(word) + mix(indices.astype(np.uint64) * _GOLDEN + _GOLDEN))


class Uniforms:
    """A stream of uniform numbers per image; every draw advances the counter of all images alike.

    Args:
        keys: One key per image, shape ``[B]``.
        counter: How many numbers have been drawn before.
    """

    def __init__(self, keys: Keys, counter: int = 0) -> None:
        self.keys = keys
        self.counter = counter

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, chosen: npt.NDArray[np.intp]) -> Uniforms:
        """Return the stream of some images, at the counter reached so far."""
        return Uniforms(self.keys[chosen], self.counter)

    def _bits(self, count: int) -> Keys:
        steps = np.arange(self.counter + 1, self.counter + count + 1, dtype=np.uint64) * _GOLDEN
        self.counter += count
        return mix(self.keys[:, None] + steps[None, :])

    def many(self, count: int, low: float = 0.0, high: float = 1.0) -> Floats:
        """Draw ``[B, count]`` numbers in [low, high); 24 random bits each, exact in float32."""
        unit = (self._bits(count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return unit * np.float32(high - low) + np.float32(low)

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Floats:
        """Draw ``[B, 1]`` numbers in [low, high)."""
        return self.many(1, low, high)

    def integers(self, count: int) -> Integers:
        """Draw ``[B]`` whole numbers in [0, count)."""
        return ((self._bits(1)[:, 0] >> np.uint64(33)) % np.uint64(count)).astype(np.int64)

    def pixels(self, count: int) -> Floats:
        """Draw ``[B, count]`` numbers in [0, 1) of eight bits each, for pixel noise."""
        words = self._bits(-(-count // 8))
        octets = np.empty((len(self.keys), words.shape[1], 8), dtype=np.float32)
        for place in range(8):
            octets[:, :, place] = ((words >> np.uint64(8 * place)) & np.uint64(255)).astype(np.float32)
        return octets.reshape(len(self.keys), -1)[:, :count] * np.float32(1 / 256)
