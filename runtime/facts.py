"""What `miso-speak --json` says of a run, and what is left of one that ended before its end. It prints nothing."""

from typing import Any

from .audio.pipe import RawWriter
from .audio.writer import AudioWriter
from .dialogue.conversation import Conversation
from .options import EngineOptions
from .request import SpeakRequest
from .tts import MisoTTS
from .voice import Voice


def model_facts(tts: MisoTTS, engine: EngineOptions, voice: Voice | None, request: SpeakRequest) -> dict[str, Any]:
    """What speaks, where, and in which voice."""
    level, gpu = tts.level, tts.engine.gpu
    return {
        "model": tts.engine.spec.name,
        "level": level.key,
        "kv_type": engine.kv_type,
        "files": [path.name for path in (level.backbone, level.decoder, level.embeddings, level.codec_decoder)],
        "device": gpu.description if gpu else "CPU",
        "seed": request.seed,
        "sample_rate_hz": request.sample_rate,
        "voice": voice and {"name": voice.name, "seconds": voice.seconds, "digest": voice.digest},
    }


def speech_facts(
    writer: AudioWriter | RawWriter, conversation: Conversation, request: SpeakRequest, *, is_whole: bool = True
) -> dict[str, Any]:
    """What was said, and what of it was written."""
    return {
        "out": request.out,
        "seconds": round(writer.seconds, 3),
        "is_whole": is_whole,
        "clipped_samples": writer.clipped,
        **conversation.as_dict(),
    }


def kept(writer: AudioWriter, request: SpeakRequest) -> str:
    """What is left on disk after an end before the end, in words."""
    return f"{request.out}: {f'{writer.seconds:.1f} s of speech are' if writer.is_kept else 'nothing is'} kept"
