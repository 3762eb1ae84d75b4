"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .model import HeldModel
from .speech.pace import Pace
from .speech.worker import Worker
from .turns import Turns

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)


class Metrics:
    """Counters of one server."""

    def __init__(self, turns: Turns, model: HeldModel, pace: Pace) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(turns, model, pace))
        ProcessCollector(registry=self._registry)
        self._answers = Counter("miso_answers", "Answers begun, by their status", ["status"], registry=self._registry)
        self._requests = Counter(
            "miso_speech_requests",
            "Requests to speak, by how they ended",
            ["format", "outcome"],
            registry=self._registry,
        )
        self._audio = Counter("miso_audio_seconds", "Seconds of speech made", registry=self._registry)
        self._frames = Counter("miso_frames", "Frames computed, of rejected tries too", registry=self._registry)
        self._characters = Counter("miso_input_characters", "Characters of what was asked for", registry=self._registry)
        self._first = Histogram(
            "miso_first_audio_seconds",
            "From a request to its first audio, the queue included",
            registry=self._registry,
            buckets=_SECONDS,
        )

    def answered(self, status: int) -> None:
        """Somebody gets an answer, to whatever he asked."""
        self._answers.labels(str(status)).inc()

    def spoken(self, worker: Worker, audio_format: str, outcome: str) -> None:
        """A request is over."""
        self._requests.labels(audio_format, outcome).inc()
        self._audio.inc(worker.audio_s)
        self._characters.inc(worker.characters)
        if worker.speech is not None:
            self._frames.inc(worker.speech.timing.frames)
        if worker.first_s:
            self._first.observe(worker.first_s)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is read when it is asked for."""

    def __init__(self, turns: Turns, model: HeldModel, pace: Pace) -> None:
        self._turns, self._model, self._pace = turns, model, pace

    def collect(self) -> list[Metric]:
        """Gauges, and what others count."""
        return [
            GaugeMetricFamily("miso_streams_speaking", "Requests that are being spoken", self._turns.speaking),
            GaugeMetricFamily("miso_streams", "Requests that can be spoken together", self._turns.streams),
            GaugeMetricFamily("miso_queue", "Requests that wait for their turn", self._turns.waiting),
            GaugeMetricFamily("miso_model_loaded", "Whether the model is in memory", int(self._model.is_loaded)),
            CounterMetricFamily("miso_model_loads", "How often it was loaded", self._model.loads),
            CounterMetricFamily(
                "miso_underruns", "Streams that ran dry, played from their first byte on", self._pace.underruns
            ),
        ]
