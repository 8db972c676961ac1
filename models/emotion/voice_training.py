"""Training of the voice: sound disturbed as rooms and microphones do, spectrograms warped as voices differ.

What works on the waveform (`disturb`) is slow, and done a few times for each take beforehand; what works on
the spectrogram is new in every step. All randomness comes from seeds. A member of the ensemble is trained
by itself. In training, and then only, it also has to tell what else is known of a take (`told_of`): what
the face does, how strongly it is acted and the speaker's sex say more of a take than its label.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from fusedge.models.emotion.labels import VOICE_LABELS
from fusedge.models.emotion.takes import RATE_HZ, Take
from fusedge.models.emotion.voice_encoder import FRAMES, HOP, LOG_MEL, VoiceClassifier, VoiceConfig
from fusedge.models.log_mel import StreamingLogMel
from fusedge.models.one_cycle import one_cycle
from fusedge.models.one_thread import one_thread
from fusedge.models.training import Progress
from fusedge.models.weight_average import WeightAverage

Wave = NDArray[np.float32]

VARIANTS = 12
_VARIANT_SEED = 7
_SPEECH = 10**-2.5  # of the loudest frames' power: 25 dB
# Hops of sound that are given before speech and after it; runtime/front/speech_front.py has 1 and 4.
_BEFORE_SPEECH, _AFTER_SPEECH = (0.5, 2.5), (2.5, 5.5)


def basis() -> str:
    """What a member's weights depend on besides takes and recipes: constants, and who does the sums."""
    return repr(
        (
            *(LOG_MEL, _VARIANT_SEED, _SPEECH, _BEFORE_SPEECH, _AFTER_SPEECH),
            *(torch.__version__, np.__version__),
        )
    )


@dataclass(frozen=True)
class VoiceRecipe:
    """How a member is trained. `pitch` and `tempo` are the greatest warps, as logarithms; times in hops.

    `clean`, `noise`, `mixup` and `speech_only` are shares: of takes shown undisturbed, of crops with a
    noise floor, of crops mixed with another, and of crops with nothing heard before speech and after it.
    `telling` is the weight of what else is told of a take.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 32
    lengths: tuple[int, ...] = (16, 20, 24)
    lead: float = 8.0
    later: int = 8
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    clean: float = 0.3
    pitch: float = 0.12
    tempo: float = 0.15
    noise: float = 0.3
    mixup: float = 0.2
    speech_only: float = 0.5
    telling: float = 1.0
    masked_bands: int = 10
    masked_frames: int = 20
    embedding_dropout: float = 0.2
    average_decay: float = 0.995


class Spectrograms:
    """Log-mels of takes and of their disturbed variants, in one tensor, and where the speech is.

    `groups` says whose voices may babble behind a take: those of its own group only, so that a group that
    is held out is heard nowhere else.
    """

    def __init__(
        self, takes: Sequence[Take], groups: Sequence[int], variants: int = VARIANTS
    ) -> None:
        mels = []
        for number, take in enumerate(takes):
            others = [
                other.wave
                for other, group in zip(takes, groups, strict=True)
                if group == groups[number] and other.actor != take.actor
            ]
            mels.append(log_mel_of(take.wave).half())
            for variant in range(1, variants):
                random = np.random.default_rng([_VARIANT_SEED, number, variant])
                mels.append(log_mel_of(disturb(take.wave, others, random)).half())
        self.values = torch.cat(mels)
        self.lengths = np.array([len(mel) for mel in mels]).reshape(len(takes), variants)
        self.first = (self.lengths.ravel().cumsum() - self.lengths.ravel()).reshape(-1, variants)
        self.speech = np.array([_speech(mel.float()) for mel in mels[::variants]])
        self.labels = np.array([take.label for take in takes])
        self.told = np.stack([told_of(take) for take in takes])

    @property
    def variants(self) -> int:
        """How often each take is there; the first is undisturbed."""
        return int(self.lengths.shape[1])


def told_of(take: Take) -> NDArray[np.float32]:
    """What is known of a take beside its label: action units, whether strongly acted, whether a woman."""
    strongly = take.name[9:11] == "02"
    return np.array([*take.units, strongly, take.female], np.float32)


def _speech(log_mel: Tensor) -> tuple[float, float]:
    """Where speech begins and ends, in shares of the take."""
    power = log_mel.exp().sum(dim=1)
    (loud,) = torch.nonzero(power > _SPEECH * power.quantile(0.97), as_tuple=True)
    return float(loud[0]) / len(power), float(loud[-1] + 1) / len(power)


def train_member(
    spectrograms: Spectrograms,
    chosen: NDArray[np.int64],
    config: VoiceConfig,
    recipe: VoiceRecipe,
    progress: Progress = lambda step, steps, loss: None,
    start: VoiceClassifier | None = None,
) -> VoiceClassifier:
    """A model of one member in evaluation mode; the same arguments give the same weights.

    With `start` it goes on from there.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(recipe.seed)
        model = VoiceClassifier(config) if start is None else copy.deepcopy(start)
        return _Run(spectrograms, chosen, model, recipe, progress).finish()


class _Run:
    def __init__(
        self,
        spectrograms: Spectrograms,
        chosen: NDArray[np.int64],
        model: VoiceClassifier,
        recipe: VoiceRecipe,
        progress: Progress,
    ) -> None:
        self.data, self.chosen, self.recipe, self.progress = spectrograms, chosen, recipe, progress
        self.model = model
        state = model.state_dict()
        # How many batches there were, which nothing reads, stays as it was at the start.
        self.counts = {n: x.clone() for n, x in state.items() if not x.is_floating_point()}
        averaged = {n: x for n, x in state.items() if n not in self.counts}
        self.average = WeightAverage(averaged, recipe.average_decay)
        told = spectrograms.told[chosen]
        scaled = (spectrograms.told - told.mean(0)) / (told.std(0) + 1e-3)
        self.told = torch.from_numpy(scaled.clip(-4, 4))
        self.teller = nn.Linear(2 * model.config.width, told.shape[1])
        self.optimizer = torch.optim.AdamW(
            [*model.parameters(), *self.teller.parameters()],
            recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.random = np.random.default_rng([recipe.seed, 11])
        self.queue = np.zeros(0, np.int64)

    def finish(self) -> VoiceClassifier:
        for step in range(self.recipe.steps):
            loss = self._advance(step)
            self.progress(step + 1, self.recipe.steps, loss)
        self.model.load_state_dict(self.average.values | self.counts)
        return self.model.eval()

    def _advance(self, step: int) -> float:
        recipe, model, random = self.recipe, self.model.train(), self.random
        share = (step + 0.5) / recipe.steps
        cycle = one_cycle(share, 0.1)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * cycle
        takes = self._takes()
        hops = int(random.choice(recipe.lengths))
        states = model.encoder.zero_states(len(takes))
        with torch.no_grad():
            crops, seen = self._crops(takes, hops)
            relative, _ = model.encoder.level(crops, seen, states[1])
            relative = relative * self._holes(*relative.shape)
            target = functional.one_hot(
                torch.from_numpy(self.data.labels[takes]), len(VOICE_LABELS)
            ).float()
            relative, target, told, seen = self._mixed(relative, target, self.told[takes], seen)
            seen = (seen > 0).float()
            target = torch.lerp(
                target, torch.full_like(target, 1 / len(VOICE_LABELS)), recipe.label_smoothing
            )
        # Half the time in bfloat16 where the processor has it, and no worse.
        with torch.autocast("cpu", torch.bfloat16):
            telling, *_ = model.encoder.listen(relative, seen, *states[2:])
            embedding = model.encoder.judged(telling)
        # The end of a crop, where all has been said, and two moments shortly before.
        moments = [hops - 1, *random.integers(hops - recipe.later, hops - 1, 2).tolist()]
        heard = embedding.float()[:, moments].flatten(0, 1)
        targets = target.repeat_interleave(len(moments), dim=0)
        dropped = functional.dropout(heard, recipe.embedding_dropout)
        loss = functional.cross_entropy(model(dropped), targets)
        heard_told = self.teller(
            functional.dropout(telling[:, -1].float(), recipe.embedding_dropout)
        )
        loss = loss + recipe.telling * functional.mse_loss(heard_told, told)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 5.0)
        self.optimizer.step()
        self.average.update(step)
        return loss.item()

    def _takes(self) -> NDArray[np.int64]:
        """The next batch: all takes in random order, again and again."""
        if len(self.queue) < self.recipe.batch:
            self.queue = np.concatenate([self.queue, self.random.permutation(self.chosen)])
        takes, self.queue = np.split(self.queue, [self.recipe.batch])
        return takes

    def _crops(self, takes: NDArray[np.int64], hops: int) -> tuple[Tensor, Tensor]:
        """Warped log-mel `[B, hops * FRAMES, mels]` of crops that end after the speech, where they can.

        And what is seen of them, `[B, hops, 1]` of 0 and 1.
        """
        recipe, data, random = self.recipe, self.data, self.random
        count, frames = len(takes), hops * FRAMES
        disturbed = random.integers(1, max(2, data.variants), count)
        variant = np.where(random.random(count) < recipe.clean, 0, disturbed % data.variants)
        lengths = data.lengths[takes, variant]
        tempo = np.exp(random.uniform(-recipe.tempo, recipe.tempo, count))
        begin, end = data.speech[takes].T * lengths
        start = np.maximum(begin - random.uniform(0, recipe.lead, count) * FRAMES, 0)
        start = np.maximum(start, np.minimum(begin, end - frames * tempo))
        places = start[:, None] + np.arange(frames) * tempo[:, None]
        places = np.clip(places, 0, lengths[:, None] - 1.001)
        whole = places.astype(np.int64)
        index = torch.from_numpy(whole + data.first[takes, variant][:, None])
        part = torch.from_numpy((places - whole).astype(np.float32)).unsqueeze(-1)
        crops = torch.lerp(data.values[index].float(), data.values[index + 1].float(), part)
        factors = np.exp(random.uniform(-recipe.pitch, recipe.pitch, count)).astype(np.float32)
        crops = crops @ _stretch(torch.from_numpy(factors))
        crops = torch.logaddexp(crops, self._floor(crops))
        seen = self._seen((begin - start) / tempo / FRAMES, (end - start) / tempo / FRAMES, hops)
        unseen = seen.repeat_interleave(FRAMES, dim=1) == 0
        return crops.masked_fill(unseen, math.log(LOG_MEL.floor)), seen

    def _seen(self, begin: NDArray[np.float64], end: NDArray[np.float64], hops: int) -> Tensor:
        """1, but 0 before speech and after it in some crops; the speech's place is in hops."""
        random, hop = self.random, np.arange(hops)
        first = np.floor(begin - random.uniform(*_BEFORE_SPEECH, len(begin)))[:, None]
        last = np.ceil(end + random.uniform(*_AFTER_SPEECH, len(end)))[:, None]
        whole = random.random((len(begin), 1)) >= self.recipe.speech_only
        seen = whole | ((hop >= first) & (hop < last))
        return torch.from_numpy(seen.astype(np.float32)).unsqueeze(-1)

    def _floor(self, crops: Tensor) -> Tensor:
        """Log-mel `[B, 1, mels]` of steady noise 30 to 75 dB below the loudest, in some crops."""
        random, (count, _, mels) = self.random, crops.shape
        below = random.uniform(30, 75, count) * math.log(10) / 10
        below = np.where(random.random(count) < self.recipe.noise, below, 50.0)
        slope = torch.from_numpy(random.normal(0, 1.5, (count, 1)).astype(np.float32))
        level = crops.amax(dim=(1, 2)) - torch.from_numpy(below.astype(np.float32))
        return (level.unsqueeze(1) + slope * torch.linspace(1, -1, mels)).unsqueeze(1)

    def _holes(self, count: int, frames: int, mels: int) -> Tensor:
        """1, but 0 in some bands and in some frames of each crop (SpecAugment, arXiv 1904.08779)."""
        kept, random = torch.ones(count, frames, mels), self.random
        for row in kept:
            for wide, size in (
                (self.recipe.masked_bands, mels),
                (self.recipe.masked_frames, frames),
            ):
                width = int(random.integers(wide + 1))
                first = int(random.integers(size - width + 1))
                if size == mels:
                    row[:, first : first + width] = 0
                else:
                    row[first : first + width] = 0
        return kept

    def _mixed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Some rows mixed with others (mixup, arXiv 1710.09412)."""
        random, count = self.random, len(tensors[0])
        own = np.where(random.random(count) < self.recipe.mixup, random.beta(0.5, 0.5, count), 1.0)
        other = torch.from_numpy(random.permutation(count))
        weight = torch.from_numpy(own.astype(np.float32))
        return tuple(
            torch.lerp(x[other], x, weight.reshape(-1, *[1] * (x.dim() - 1))) for x in tensors
        )


@cache
def _centres_hz() -> Tensor:
    """Centres of the bands of `LOG_MEL`, which are evenly spaced in HTK's mels."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (LOG_MEL.f_min_hz, LOG_MEL.top_hz))
    mels = torch.linspace(low, high, LOG_MEL.n_mels + 2)[1:-1]
    return 700 * (10 ** (mels / 2595) - 1)


def _stretch(factors: Tensor) -> Tensor:
    """Matrices `[B, mels, mels]` after which a band shows what was at `factor` times its frequency."""
    centres = _centres_hz()
    wanted = (centres * factors.unsqueeze(1)).clamp(centres[0], centres[-1])
    # Between the centres of two bands the one gives way to the other.
    upper = torch.searchsorted(centres, wanted).clamp(1, len(centres) - 1)
    part = (wanted - centres[upper - 1]) / (centres[upper] - centres[upper - 1])
    bands = functional.one_hot(upper, len(centres)).float()
    below = functional.one_hot(upper - 1, len(centres)).float()
    weights = bands * part.unsqueeze(-1) + below * (1 - part).unsqueeze(-1)
    return weights.transpose(1, 2)


def disturb(wave: Wave, others: Sequence[Wave], random: np.random.Generator) -> Wave:
    """A take `[T]` as another room, microphone and speaker might give it, `[T']`.

    `others` are what may babble in the background.
    """
    wave = resampled(wave, math.exp(random.uniform(-0.12, 0.12)))
    if random.random() < 0.4:
        wave = _reverberated(wave, random)
    wave = _coloured(wave, random.normal(0, 4, 6), random.uniform(-3, 3))
    loudness = float(np.sqrt(np.mean(wave**2))) + 1e-6
    if random.random() < 0.7:
        noise = _coloured(
            random.standard_normal(len(wave)).astype(np.float32), np.zeros(6), random.uniform(-6, 0)
        )
        wave = wave + noise * (loudness * 10 ** (-random.uniform(5, 40) / 20) / _rms(noise))
    if others and random.random() < 0.25:
        babble = np.zeros_like(wave)
        for _ in range(random.integers(2, 6)):
            babble += _cut(others[int(random.integers(len(others)))], len(wave), random)
        wave = wave + babble * (loudness * 10 ** (-random.uniform(8, 30) / 20) / _rms(babble))
    wave = wave * (0.1 / loudness * 10 ** (random.uniform(-20, 6) / 20))
    # As a recorder gives it.
    return np.asarray(np.clip(np.round(wave * 32768), -32768, 32767) / 32768, np.float32)


def resampled(wave: Wave, factor: float) -> Wave:
    """Played `factor` times as fast, which shifts pitch and formants alike."""
    places = np.arange(0, len(wave) - 1, factor)
    return np.asarray(np.interp(places, np.arange(len(wave)), wave), np.float32)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(wave**2))) + 1e-9


def _cut(wave: Wave, count: int, random: np.random.Generator) -> Wave:
    """`count` samples from anywhere, repeated if too short."""
    cut: Wave = np.roll(np.resize(wave, count), int(random.integers(count))) / _rms(wave)
    return cut.astype(np.float32)


def _coloured(wave: Wave, knots_db: NDArray[np.float64], slope_db: float) -> Wave:
    """Filtered with gains at knots evenly over the octaves from 60 Hz on, and a slope in dB an octave."""
    size = 1 << len(wave).bit_length()
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 60.0) / 60)
    gain_db = np.interp(octaves, np.linspace(0, 7, len(knots_db)), knots_db) + slope_db * octaves
    spectrum = np.fft.rfft(wave, size) * 10 ** (gain_db / 20)
    return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)


def _reverberated(wave: Wave, random: np.random.Generator) -> Wave:
    """With a tail of noise that decays by 60 dB in 0.1 to 0.8 s, -3 to 15 dB below the direct sound."""
    decay_s = 0.1 * 8 ** random.random()
    times = np.arange(int(decay_s * RATE_HZ)) / RATE_HZ
    tail = random.standard_normal(len(times)) * 10 ** (-3 * times / decay_s)
    tail *= 10 ** (-random.uniform(-3, 15) / 20) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    size = 1 << (len(wave) + len(tail)).bit_length()
    both = np.fft.rfft(wave, size) * np.fft.rfft(tail, size)
    return np.fft.irfft(both, size)[: len(wave)].astype(np.float32)


@cache
def _log_mel() -> StreamingLogMel:
    return StreamingLogMel(LOG_MEL)


@torch.no_grad()
def log_mel_of(wave: Wave) -> Tensor:
    """Log-mel float32 `[N * FRAMES, mels]` of the whole hops of a take."""
    layer = _log_mel()
    count = len(wave) // HOP * HOP
    features: Tensor = layer(
        torch.from_numpy(wave[:count])[None, :, None], torch.zeros(1, *layer.state_shape)
    )[0]
    return features[0]


@torch.no_grad()
def hear(model: VoiceClassifier, wave: Wave) -> Tensor:
    """Embeddings of the whole hops of a take, heard as a stream, `[N, D]`."""
    window = torch.from_numpy(wave[: len(wave) // HOP * HOP])[None, :, None]
    embedding, *_ = model.encoder(window, torch.ones_like(window), *model.encoder.zero_states(1))
    heard: Tensor = embedding[0]
    return heard
