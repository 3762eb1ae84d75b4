"""The thread that speaks one request: the model's sound, stretched, encoded, and put where the event loop takes it."""

import threading
import time
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from ...models.mimi import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, cut_off
from ...runtime.speech import Chunk, Speech
from ...runtime.synthesis.stream import SpeechStream
from ...runtime.tts import MisoTTS
from ...runtime.voice import Voice
from ..errors import ApiError
from ..sound.encoding import Encoder, open_encoder
from ..sound.tempo import Tempo
from ..turns import Turns
from ..voices.names import Voices
from .backlog import Backlog
from .pace import Lead, Pace
from .request import SpeechRequest


class Worker:
    """Speaks one request into a backlog. `stop` ends it, from any thread."""

    def __init__(
        self,
        request: SpeechRequest,
        backlog: Backlog,
        *,
        voices: Voices,
        turns: Turns,
        pace: Pace,
        most_seconds: float,
    ) -> None:
        self._request, self._backlog, self._most_seconds = request, backlog, most_seconds
        self._voices, self._turns, self._pace = voices, turns, pace
        self._lock = threading.Lock()
        self._stream: SpeechStream | None = None
        self._stopped = False
        self.clip: Samples | None = None
        """The recording of a voice that came with the request."""
        self.characters = len(request.input)
        self.speech: Speech | None = None
        self.audio_s = 0.0
        """Of speech, before it was stretched."""
        self.input_tokens = 0
        self.begin, self.first_s = time.perf_counter(), 0.0

    def stop(self, error: ApiError | None = None) -> None:
        """Make no more, from the next frame on: nobody listens, or whoever does gets the error. Does not wait."""
        if error is None:
            self._backlog.close()
        else:
            self._backlog.end(error)
        with self._lock:
            self._stopped = True
            if self._stream is not None:
                self._stream.stop()

    def _hold(self, stream: SpeechStream) -> None:
        """What to stop, when this is stopped."""
        with self._lock:
            self._stream = stream
            if self._stopped:
                stream.stop()

    def run(self, tts: MisoTTS) -> None:
        """Speak. Raises `ApiError` on what is wrong with the request, else as `SpeechStream`."""
        if self._stopped:
            return
        lead, voice = Lead(), self._voice(tts)
        encoder = open_encoder(self._request.response_format, whole=not self._request.is_streamed)
        with encoder, self._begun(tts, voice) as stream:
            self.speech = stream.speech
            speaking = self._encode(stream, encoder, lead)
        # Now that it is closed: of a sentence that was cut there is a record only then.
        self.input_tokens = sum(len(tts.engine.prompts.text(s.text, 0)) for s in stream.speech.sentences)
        self._pace.note(lead, speaking)
        if not self.audio_s and not self._stopped:
            message = "the model said nothing to this input: another seed, or other words, may do better"
            raise ApiError(422, message, "input", "no_speech")

    def _begun(self, tts: MisoTTS, voice: Voice | None) -> SpeechStream:
        request = self._request
        try:
            stream = tts.stream(request.input, voice=voice, speaker=request.speaker, options=request.options)
        except ValueError as error:
            raise ApiError(400, str(error), "input", "invalid_value") from error
        self._hold(stream)
        return stream

    def _voice(self, tts: MisoTTS) -> Voice | None:
        request, name = self._request, self._request.voice_name
        if self.clip is None:
            return None if name is None else self._voices.resolve(name, tts, self._hold)
        try:
            return Voice.from_audio(self.clip, request.ref_text or "", tts.codec)
        except ValueError as error:
            raise ApiError(400, str(error), "ref_audio", "invalid_value") from error

    def _encode(self, stream: SpeechStream, encoder: Encoder, lead: Lead) -> int:
        """Put all of it into the backlog, and give how many spoke at a time meanwhile, at most."""
        speed, ready, speaking = self._request.speed, list[Samples](), self._turns.speaking
        tempo, first_s = Tempo(speed), self._pace.first_frames(speaking, speed) / FRAME_RATE_HZ
        for samples in self._within_limit(stream):
            speaking = max(speaking, self._turns.speaking)
            lead.made(len(samples) / SAMPLE_RATE_HZ, self._backlog.blocked_s)
            ready.append(tempo(samples))
            # Of what came out: a change of tempo holds back, and a listener plays what there is.
            if self.first_s or sum(map(len, ready)) * speed >= first_s * SAMPLE_RATE_HZ:
                self._put(encoder, lead, ready)
                ready.clear()
        if self.audio_s:
            self._put(encoder, lead, [*ready, tempo.rest()])
            self._backlog.put(encoder.finish())
        return speaking

    def _put(self, encoder: Encoder, lead: Lead, ready: list[Samples]) -> None:
        sound = np.concatenate(ready)
        lead.left(len(sound) / SAMPLE_RATE_HZ, self._backlog.blocked_s)
        self.first_s = self.first_s or time.perf_counter() - self.begin
        self._backlog.put(encoder.encode(sound))

    def _within_limit(self, stream: SpeechStream) -> Iterator[Samples]:
        """The sound as far as one request may have it."""
        most = round(self._most_seconds * SAMPLE_RATE_HZ)
        left = most
        for chunk in chain(self._first_of(stream), stream):
            samples = chunk.samples if len(chunk.samples) < left else cut_off(chunk.samples[:left])
            left -= len(samples)
            self.audio_s = (most - left) / SAMPLE_RATE_HZ
            yield samples
            if not left:
                return

    def _first_of(self, stream: SpeechStream) -> list[Chunk]:
        """Its first chunk, before which a request can turn out to be one that leaves no room to speak."""
        try:
            return [*islice(stream, 1)]
        except ValueError as error:
            raise ApiError(400, str(error), "input", "invalid_value") from error
