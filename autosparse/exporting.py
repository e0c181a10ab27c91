"""Networks as files that need no Python of ours: ONNX and torch.export programs, tried out before they stay."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from autosparse.errors import AutoSparseError
from autosparse.files import atomic_path
from autosparse.outputs import largest_difference, tensors_in
from autosparse.seeding import generator

#: Batch sizes at which a written file is run. It was traced with another one: a size that was taken for a constant
#: would be found out.
CHECKED_BATCHES = (1, 5)
_TRACED_BATCH = 2
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}
_SINGLE_TOLERANCE = 1e-4
_ONNX_LIMIT = 2**31  # bytes of one protobuf message


@dataclass(frozen=True)
class Exported:
    """A written file.

    Args:
        bytes: its size.
        difference: the largest one between its outputs and the network's, over the largest output.
        tolerance: what that was allowed to be.
    """

    path: Path
    bytes: int
    difference: float
    tolerance: float


def export_onnx(model: nn.Module, example: Tensor, path: Path | str) -> Exported:
    """Write ``model`` as ONNX, weights inside, for any number of images; the model is left as it was.

    The network is traced in eval mode on the CPU. Its input is ``images``, its outputs are ``logits``, or ``output0``,
    ``output1``, ... if there are several. The file is then run by onnxruntime on random images, one and five at a
    time, and stays only if the outputs are the network's: their largest difference is at most 1e-4 of the largest
    output in single precision (float64 1e-6, float16 0.02, bfloat16 0.1).

    Args:
        example: images ``[N, C, H, W]`` as the network will see them; only shape and type matter.
        path: overwritten, once the file is known to be good.

    Raises:
        AutoSparseError: a package is missing (the extra ``onnx``), the network cannot be exported, or the file does
            not compute what it does.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise AutoSparseError(f"writing ONNX needs {package}; run: pip install 'autosparse[onnx]'")

    def write(network: nn.Module, images: Tensor, file: Path) -> None:
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        if size >= _ONNX_LIMIT:
            raise AutoSparseError(
                f"{type(model).__name__} has {size >> 20} MiB of weights, more than the 2 GiB of an ONNX file: "
                "export a program instead"
            )
        with torch.no_grad():
            outputs = len(list(tensors_in(network(images))))
        program = torch.onnx.export(
            _program(network, images),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"] if outputs == 1 else [f"output{index}" for index in range(outputs)],
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=False)

    def read(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda images: [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]

    return _export(model, example, Path(path), write, read)


def export_program(model: nn.Module, example: Tensor, path: Path | str) -> Exported:
    """Write ``model`` as a ``torch.export`` program (``.pt2``) for any number of images; it is left as it was.

    ``torch.export.load(path).module()`` runs it. Arguments, checks, tolerances and errors are those of
    :func:`export_onnx`; no extra package is needed.
    """

    def write(network: nn.Module, images: Tensor, file: Path) -> None:
        buffer = io.BytesIO()  # torch.export.save wants a name that ends in .pt2, which a temporary file's does not
        torch.export.save(_program(network, images), buffer)
        file.write_bytes(buffer.getbuffer())

    def read(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
        program = torch.export.load(io.BytesIO(file.read_bytes())).module()
        return lambda images: list(tensors_in(program(images)))

    return _export(model, example, Path(path), write, read)


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


def _export(
    model: nn.Module,
    example: Tensor,
    path: Path,
    write: Callable[[nn.Module, Tensor, Path], None],
    read: Callable[[Path], Callable[[Tensor], Sequence[Tensor]]],
) -> Exported:
    network = copy.deepcopy(model).cpu().eval()
    tolerance = _TOLERANCE.get(example.dtype, _SINGLE_TOLERANCE)
    noise = torch.randn(max(CHECKED_BATCHES), *example.shape[1:], generator=generator(0, "export")).to(example.dtype)
    with atomic_path(path) as temporary, _quiet(), torch.no_grad():
        with _one_line(model, example):
            write(network, noise[:_TRACED_BATCH], temporary)
            run = read(temporary)
        difference = 0.0
        for batch in CHECKED_BATCHES:
            expected = list(tensors_in(network(noise[:batch])))
            with _one_line(model, example):
                difference = max(difference, largest_difference(run(noise[:batch]), expected))
        if not difference <= tolerance:
            raise AutoSparseError(
                f"the exported {type(model).__name__} computes something else: its outputs differ by {difference:.2g} "
                f"of the largest one, more than {tolerance:g}; nothing was written"
            )
        size = temporary.stat().st_size
    return Exported(path, size, difference, tolerance)


@contextmanager
def _one_line(model: nn.Module, example: Tensor) -> Iterator[None]:
    """AutoSparseError for whatever tracing, writing or running raises about the network."""
    try:
        yield
    except (AutoSparseError, OSError):
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise AutoSparseError(
            f"{type(model).__name__} cannot be exported for images of {list(example.shape[1:])} ({reason}): check that "
            "it can be evaluated on them, and that nothing in it depends on their values"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks that the exporters make on every network."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
