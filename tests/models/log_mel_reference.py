"""Makes `log_mel_reference.json`: what torchaudio and librosa make of a test signal.

Both are needed once, not by the tests: `python -m tests.models.log_mel_reference torchaudio` (in an
environment that has it), then the same with `librosa`, each of which writes its half of the file.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_suffix(".json")
RATE_HZ = 16_000
# The fields of LogMelConfig, by name.
CONFIGS: dict[str, dict[str, Any]] = {
    "htk": {"n_mels": 23, "n_fft": 400, "win_length": 400, "hop_length": 160},
    "short window, magnitude": {
        "n_mels": 20,
        "n_fft": 512,
        "win_length": 401,
        "hop_length": 200,
        "f_min_hz": 20.0,
        "f_max_hz": 7600.0,
        "norm": "slaney",
        "power": 1,
        "log": "db",
    },
    "slaney": {
        "n_mels": 32,
        "n_fft": 400,
        "win_length": 400,
        "hop_length": 160,
        "mel_scale": "slaney",
        "norm": "slaney",
        "log": "db",
    },
    "slaney scale alone": {
        "n_mels": 16,
        "n_fft": 512,
        "win_length": 512,
        "hop_length": 256,
        "mel_scale": "slaney",
        "log": "log10",
        "f_max_hz": 7000.0,
        "floor": 1e-6,
    },
}


def signal() -> NDArray[np.float32]:
    """A rising tone from 200 Hz to 4.2 kHz, silence, the tone at -40 dB, in 16 bits: float32 `[1700]`."""
    t = np.arange(1700) / RATE_HZ
    wave = 0.5 * np.sin(2 * np.pi * (200 * t + 32_000 * t * t)) + 0.01 * np.sin(2 * np.pi * 313 * t)
    wave[700:1200] = 0
    wave[1200:] *= 0.01
    return (np.round(wave * 32768) / 32768).astype(np.float32)


def _torchaudio(config: dict[str, Any], center: bool) -> NDArray[np.float64]:
    import torch
    from torchaudio.transforms import MelSpectrogram

    transform = MelSpectrogram(
        RATE_HZ,
        n_fft=config["n_fft"],
        win_length=config["win_length"],
        hop_length=config["hop_length"],
        f_min=config.get("f_min_hz", 0.0),
        f_max=config.get("f_max_hz"),
        n_mels=config["n_mels"],
        power=config.get("power", 2),
        norm=config.get("norm"),
        mel_scale=config.get("mel_scale", "htk"),
        center=center,
    ).double()
    bands: NDArray[np.float64] = transform(torch.from_numpy(signal()).double()).numpy()
    return bands


def _librosa(config: dict[str, Any], center: bool) -> NDArray[np.float64]:
    import librosa

    bands: NDArray[np.float64] = librosa.feature.melspectrogram(
        y=signal().astype(np.float64),
        sr=RATE_HZ,
        n_fft=config["n_fft"],
        win_length=config["win_length"],
        hop_length=config["hop_length"],
        center=center,
        pad_mode="reflect",
        power=config.get("power", 2),
        n_mels=config["n_mels"],
        fmin=config.get("f_min_hz", 0.0),
        fmax=config.get("f_max_hz"),
        htk=config.get("mel_scale", "htk") == "htk",
        norm=config.get("norm"),
    )
    return bands


def main() -> None:
    name = sys.argv[1]
    package = __import__(name)
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    results[name] = {"version": package.__version__}
    for title, config in CONFIGS.items():
        for center in (True, False):
            bands = (_torchaudio if name == "torchaudio" else _librosa)(config, center)
            logs = np.log(np.maximum(bands, config.get("floor", 1e-10))).T
            if (kind := config.get("log", "ln")) != "ln":
                logs *= (20 / config.get("power", 2) if kind == "db" else 1) / math.log(10)
            results[name][f"{title}, {'centred' if center else 'inside'}"] = [
                [round(float(value), 4) for value in row] for row in logs
            ]
    text = (
        json.dumps(results, separators=(",", ":")).replace("],[", "],\n[").replace('],"', '],\n"')
    )
    FILE.write_text(text + "\n")


if __name__ == "__main__":
    main()
