"""The bytes that each token of a vocabulary stands for, without decoding whole texts.

A token may be half a character, so that its own decoded text says nothing; the pieces of a
vocabulary say it. Put end to end, the bytes of a text's tokens are the bytes of the text, but for a
space that some tokenizers put before its first word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import UnsupportedModelError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
# Radford et al. 2019: bytes that print are written as they are, the others as what comes from 256.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_BYTE_OF = {chr(b): b for b in _PRINTED} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """A function from token id to UTF-8 bytes; special tokens, and ids without a token, have none.

    For vocabularies of bytes (GPT-2 and its kin) and of pieces with byte fallback (SentencePiece).
    Raises `UnsupportedModelError` for others, whose tokens do not spell the text.
    """
    kinds = _decoders(tokenizer)
    if "ByteLevel" in kinds:
        read = _printed_bytes
    elif "ByteFallback" in kinds or "Metaspace" in kinds:
        read = _piece_bytes
    else:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} writes no text back byte by byte: trace its text over an "
            "index of its own tokens instead."
        )
    special = set(tokenizer.all_special_ids)
    added = {i: str(token).encode() for i, token in tokenizer.added_tokens_decoder.items()}
    size = len(tokenizer)

    def bytes_of(token: int) -> bytes:
        if token in special or not 0 <= token < size:
            return b""
        return added[token] if token in added else read(tokenizer.convert_ids_to_tokens(token))

    return bytes_of


def _decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())["decoder"]
    return {one["type"] for one in [decoder, *(decoder or {}).get("decoders", [])] if one}


def _printed_bytes(piece: str) -> bytes:
    return bytes(_BYTE_OF[letter] for letter in piece)


def _piece_bytes(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ").encode()
