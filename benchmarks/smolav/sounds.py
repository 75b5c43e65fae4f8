"""Make the sounds of SmolAV: words spoken by espeak-ng, beeps, and synthesised sounds.

A `Sound` is a plain description of a clip of four seconds; `Speaker.sound` turns it into samples.
espeak-ng comes with its voices in the PyPI package ``espeakng-loader``: nothing of the system.
"""

from __future__ import annotations

import _ctypes
import ctypes
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.smolav.words import MAX_THINGS, SOUNDS, SPOKEN

RATE = 16_000
"""Samples per second."""

SECONDS = 4.0
"""Length of a clip."""

_VOICES = ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "f5")
_LANGUAGES = ("en-us", "en")
_GAP = 0.15
_BEEP, _PAUSE = 0.13, 0.13

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _SPEED, _PITCH, _UTF8 = 2, 1, 3, 1


@dataclass(frozen=True)
class Event:
    """Something that is heard.

    Attributes:
        kind: "word", "beeps" or "sound".
        what: The word, the number of beeps as digits, or a word of `SOUNDS`.
        start: Seconds from the beginning.
        length: Seconds.
        pitch: 0 to 1, low to high.
        voice: Index of the voice, for a word.
        speed: Words per minute, for a word.
        loudness: Peak, 0 to 1.
    """

    kind: str
    what: str
    start: float
    length: float
    pitch: float
    voice: int
    speed: int
    loudness: float


@dataclass(frozen=True)
class Sound:
    """What a clip holds: events in the order of time, and the hiss behind them."""

    events: tuple[Event, ...]
    hiss: float
    seed: int

    def event(self, kind: str) -> Event | None:
        """Return the event of a kind, if there is one."""
        return next((event for event in self.events if event.kind == kind), None)


def sample_sound(rng: random.Random, word: str | None = None) -> Sound:
    """Draw a random clip of one to three events of different kinds.

    Args:
        rng: Source of randomness.
        word: A word that must be said.
    """
    kinds = rng.sample(("word", "beeps", "sound"), rng.choice((1, 2, 2, 3)))
    if word is not None and "word" not in kinds:
        kinds[rng.randrange(len(kinds))] = "word"
    drawn = []
    for kind in kinds:
        if kind == "word":
            drawn.append((kind, word or rng.choice(SPOKEN), 0.85))
        elif kind == "beeps":
            count = rng.randint(1, MAX_THINGS)
            drawn.append((kind, str(count), count * (_BEEP + _PAUSE)))
        else:
            drawn.append((kind, rng.choice(SOUNDS), rng.uniform(0.5, 0.7)))
    spare = SECONDS - 0.1 - sum(length + _GAP for _, _, length in drawn)
    cuts = sorted(rng.uniform(0, spare) for _ in drawn)
    events, used = [], 0.05
    for cut, (kind, what, length) in zip(cuts, drawn, strict=True):
        events.append(
            Event(
                kind=kind,
                what=what,
                start=used + cut,
                length=length,
                pitch=rng.random(),
                voice=rng.randrange(len(_VOICES) * len(_LANGUAGES)),
                speed=rng.randint(130, 180),
                loudness=rng.uniform(0.35, 0.9),
            )
        )
        used += length + _GAP
    return Sound(tuple(events), rng.choice((0.0, 0.001, 0.004)), rng.getrandbits(32))


class _EspeakEvent(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("rest", ctypes.c_byte * 64)]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class Speaker:
    """Speaks with espeak-ng.

    espeak-ng keeps state between utterances that no call resets, so that the samples of a word
    would depend on what was said before. The library is therefore loaded anew for each word, which
    takes about 5 ms.

    Raises:
        ValueError: The package ``espeakng-loader`` is missing or does not work here.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise ValueError("espeakng-loader is not installed; run `make smolav`") from None
        self._path = espeakng_loader.get_library_path()
        self._data = espeakng_loader.get_data_path().encode()

    def say(self, word: str, voice: int, speed: int, pitch: float) -> np.ndarray:
        """Speaks a word.

        Args:
            word: What to say.
            voice: 0 to 15.
            speed: Words per minute.
            pitch: 0 to 1.

        Returns:
            float32 samples at 16 kHz, peak 1, silence at both ends cut off.

        Raises:
            ValueError: espeak-ng cannot be loaded or has not got the voice.
        """
        name = f"{_LANGUAGES[voice // len(_VOICES)]}+{_VOICES[voice % len(_VOICES)]}"
        chunks, rate = self._synthesise(word, name, speed, round(30 + 40 * pitch))
        samples = np.concatenate(chunks).astype(np.float64)
        loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
        samples = samples[loud[0] : loud[-1] + 1]
        places = np.arange(0, len(samples) - 1, rate / RATE)
        smoothed = _lowpass(samples, 0.45 * RATE / rate)
        resampled = np.interp(places, np.arange(len(samples)), smoothed)
        return (resampled / np.abs(resampled).max()).astype(np.float32)

    def _synthesise(
        self, word: str, voice: str, speed: int, pitch: int
    ) -> tuple[list[np.ndarray], int]:
        """Return samples as int16, in pieces, and their rate."""
        chunks: list[np.ndarray] = []

        def collect(samples: Any, count: int, _: object) -> int:
            if samples and count > 0:
                chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        try:
            library = ctypes.CDLL(self._path)
        except OSError as error:
            raise ValueError(f"espeak-ng cannot be loaded: {error}") from None
        try:
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, self._data, 0)
            if rate <= 0:
                raise ValueError(f"espeak-ng cannot be started (status {rate})")
            callback = _CALLBACK(collect)  # must live as long as the library may call it
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {voice!r}")
            library.espeak_SetParameter(_SPEED, speed, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            library.espeak_ng_SetRandSeed(1)  # breath and flutter are random
            text = word.encode()
            library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
            library.espeak_Synchronize()
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
        return chunks, rate

    def sound(self, sound: Sound) -> np.ndarray:
        """Return the samples of a clip, float32 [64000]; the same sound gives the same samples."""
        rng = np.random.default_rng(sound.seed)
        clip = rng.normal(0.0, sound.hiss, int(SECONDS * RATE)) if sound.hiss else None
        clip = np.zeros(int(SECONDS * RATE)) if clip is None else clip
        for event in sound.events:
            if event.kind == "word":
                samples = self.say(event.what, event.voice, event.speed, event.pitch)
            elif event.kind == "beeps":
                samples = _beeps(int(event.what), event.pitch)
            else:
                samples = _synthesise(event, rng)
            start = int(event.start * RATE)
            samples = samples[: len(clip) - start]
            clip[start : start + len(samples)] += event.loudness * samples
        return clip.clip(-1, 1).astype(np.float32)


@lru_cache(maxsize=8)
def _kernel(cutoff: float) -> np.ndarray:
    taps = np.arange(-24, 25)
    kernel = 2 * cutoff * np.sinc(2 * cutoff * taps) * np.hamming(len(taps))
    return kernel / kernel.sum()


def _lowpass(samples: np.ndarray, cutoff: float) -> np.ndarray:
    """Windowed sinc; the cutoff is in cycles per sample."""
    return np.convolve(samples, _kernel(cutoff), mode="same")


def _time(length: float) -> np.ndarray:
    return np.arange(int(length * RATE)) / RATE


def _fade(samples: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    ramp = np.linspace(0, 1, int(seconds * RATE))
    samples = samples.copy()
    samples[: len(ramp)] *= ramp
    samples[-len(ramp) :] *= ramp[::-1]
    return samples


def _beeps(count: int, pitch: float) -> np.ndarray:
    beep = _fade(np.sin(2 * math.pi * (500 + 900 * pitch) * _time(_BEEP)))
    pause = np.zeros(int(_PAUSE * RATE))
    return np.concatenate([np.concatenate([beep, pause]) for _ in range(count)])


def _synthesise(event: Event, rng: np.random.Generator) -> np.ndarray:
    """Return a sound of `SOUNDS`, peak about 1."""
    time = _time(event.length)
    base = 1 + 0.5 * event.pitch
    if event.what == "noise":
        return _fade(rng.normal(0, 0.35, len(time)).clip(-1, 1), 0.05)
    if event.what == "alarm":  # two tones in turn
        tone = np.where((time * 8).astype(int) % 2 == 0, 650 * base, 950 * base)
        return _fade(np.sin(2 * math.pi * np.cumsum(tone) / RATE))
    if event.what == "buzz":  # a low sawtooth
        return _fade(2 * ((time * 90 * base) % 1) - 1)
    if event.what == "whistle":  # a tone that rises
        tone = 900 * base * (1 + time / event.length)
        return _fade(np.sin(2 * math.pi * np.cumsum(tone) / RATE), 0.05)
    knocks = np.zeros(len(time))  # dull strokes
    step = int(0.2 * RATE)
    for start in range(0, len(time), step):
        local = np.arange(min(step, len(time) - start)) / RATE
        stroke = np.sin(2 * math.pi * 140 * base * local) + 0.3 * rng.normal(0, 1, len(local))
        knocks[start : start + len(local)] += stroke * np.exp(-local / 0.02)
    return knocks / max(1.0, np.abs(knocks).max())


def token_labels(sound: Sound, tokens: int) -> list[str]:
    """Tell in one word what is heard at each audio token, for dense supervision.

    A word counts from its start for 0.5 s, which most of the words take; "nothing" is silence.
    """
    labels = []
    for index in range(tokens):
        time = (index + 0.5) * SECONDS / tokens
        label = "nothing"
        for event in sound.events:
            inside = time - event.start
            if not 0 <= inside < (0.5 if event.kind == "word" else event.length):
                continue
            if event.kind == "beeps":
                label = "tone" if inside % (_BEEP + _PAUSE) < _BEEP else "nothing"
            else:
                label = event.what
        labels.append(label)
    return labels
