"""The tensors of the Open Inference Protocol: what a request says in them, and how an answer is put into some."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic_core import from_json

from burnish.serving.proto import inference_pb2 as pb
from burnish.serving.refusals import RefusedError

_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 1024  # of a tensor
_MOST_FIELDS = 64  # parameters and tensors of a request
_TYPES = {
    "BOOL": ("bool_contents", "?"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}
_NOT_BY_NAME = ("model", "prompt", "messages")  # these have their own places


def fields_of(request: pb.ModelInferRequest) -> dict[str, Any]:
    """The fields of a completion request: of `text_input` its prompts, each other one by its name, as a parameter or as
    a tensor, or by `sampling_parameters`, a JSON object of them.

    Raises:
        RefusedError: a tensor is not what it says, or something is given twice.
    """
    if len(request.parameters) + len(request.inputs) > _MOST_FIELDS:
        raise RefusedError("invalid", f"at most {_MOST_FIELDS} parameters and inputs")
    raws: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
    if len(raws) != len(request.inputs):
        raise RefusedError("invalid", "raw_input_contents must be as many as inputs", parameter="raw_input_contents")
    given: list[tuple[str, Any]] = [
        (name, getattr(parameter, choice))
        for name, parameter in request.parameters.items()
        if (choice := parameter.WhichOneof("parameter_choice"))
    ]
    prompts: list[Any] | None = None
    for tensor, raw in zip(request.inputs, raws, strict=True):
        values = _values(tensor, raw)
        if tensor.name == "text_input" and prompts is None and tensor.datatype == "BYTES":
            prompts = values
        else:
            given.append((tensor.name, values[0] if len(values) == 1 else values))
    if prompts is None:
        raise RefusedError("invalid", "text_input: the input with the prompts, of type BYTES", parameter="text_input")
    found: dict[str, Any] = {}
    for name, value in given:
        fields = _object(name, value) if name == "sampling_parameters" else {name: value}
        for field in fields:
            if field in found or field in _NOT_BY_NAME or field == "text_input":
                raise RefusedError("invalid", f"{field}: given twice, or not by this name", parameter=field)
        found |= fields
    return found | {"prompt": prompts}


def texts_output(name: str, texts: Sequence[str]) -> tuple[pb.ModelInferResponse.InferOutputTensor, bytes]:
    """A tensor of texts, and its raw contents: of each its length in bytes, and the bytes."""
    encoded = [text.encode() for text in texts]
    raw = b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return pb.ModelInferResponse.InferOutputTensor(name=name, datatype="BYTES", shape=[len(texts)]), raw


def integers_output(name: str, values: Sequence[int]) -> tuple[pb.ModelInferResponse.InferOutputTensor, bytes]:
    """A tensor of integers of 32 bits, and its raw contents."""
    tensor = pb.ModelInferResponse.InferOutputTensor(name=name, datatype="INT32", shape=[len(values)])
    return tensor, struct.pack(f"<{len(values)}i", *values)


def _object(name: str, value: Any) -> dict[str, Any]:
    try:
        found = from_json(value)
    except (ValueError, TypeError) as error:
        raise RefusedError("invalid", f"{name}: no JSON", parameter=name) from error
    if not isinstance(found, dict):
        raise RefusedError("invalid", f"{name}: must be a JSON object", parameter=name)
    return found


def _values(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[Any]:
    """The elements, from the raw contents or the typed ones."""
    name, shape = tensor.name[:100], tensor.shape
    if len(shape) > _MOST_DIMENSIONS or any(not 0 <= size <= _MOST_ELEMENTS for size in shape):
        raise RefusedError("invalid", f"{name}: at most {_MOST_ELEMENTS} elements", parameter=name)
    if (count := math.prod(shape)) > _MOST_ELEMENTS:
        raise RefusedError("invalid", f"{name}: at most {_MOST_ELEMENTS} elements", parameter=name)
    fault = RefusedError(
        "invalid", f"{name}: the contents are not {count} elements of type {tensor.datatype[:20]}", parameter=name
    )
    if tensor.datatype == "BYTES":
        pieces = _strings(raw, count) if raw is not None else tensor.contents.bytes_contents
        if pieces is None or len(pieces) != count:
            raise fault
        try:
            return [piece.decode() for piece in pieces]
        except UnicodeDecodeError as error:
            raise RefusedError("invalid", f"{name}: not UTF-8", parameter=name) from error
    if tensor.datatype not in _TYPES:
        known = ", ".join(("BYTES", *_TYPES))
        raise RefusedError("invalid", f"{name}: the type must be one of {known}", parameter=name)
    contents, dtype = _TYPES[tensor.datatype]
    if raw is None:
        typed = getattr(tensor.contents, contents)
        if len(typed) != count:
            raise fault
        return list(typed)
    if len(raw) != count * np.dtype(dtype).itemsize:
        raise fault
    found: list[Any] = np.frombuffer(raw, dtype).tolist()
    return found


def _strings(raw: bytes, count: int) -> list[bytes] | None:
    """`count` byte strings, each after its length; None where there are not exactly as many."""
    found, place = [], 0
    for _ in range(count):
        if place + 4 > len(raw):
            return None
        (size,) = struct.unpack_from("<I", raw, place)
        found.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    return found if place == len(raw) else None
