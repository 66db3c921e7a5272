"""A GPU that is not there: tensors that claim to lie on `cuda:0`, compute on the CPU, and refuse what a GPU refuses.

Inside of `EmulatedGPU` every tensor that is made on, or moved to, `cuda` becomes an `OnDevice`. It raises where devices
are mixed and where NumPy is to read it, and notes each time that Python would wait for the device: numbers that are
read, results whose size depends on numbers, copies from and to memory that is not pinned. What is not emulated: kernels
(Triton's least of all), CUDA graphs, streams, precision, time.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdRef

from hashpose_ns import host
from hashpose_ns.encoding.eager import BACKEND as EAGER
from hashpose_ns.encoding.triton import TritonBackend

GPU = torch.device("cuda:0")
SIZES_DEPEND_ON_NUMBERS = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
READS = ("_local_scalar_dense", "equal", "is_nonzero", "_linalg_check_errors")
COPIES = ("copy_", "_to_copy")
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
NOT_ASKING = (Path(__file__), Path(host.__file__))
"""Whose callers ask for what they do."""
MAKE_TENSORS_INSIDE = ("quantile", "nanquantile")
"""Operations of others that make tensors where torch believes their argument is; here without gradient."""


@dataclass(frozen=True)
class Wait:
    """Once that Python waited for the device."""

    what: str
    """The operation, or what was copied."""
    where: str
    """The innermost line that is neither torch's nor this file's: path:line of the function."""

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


_waits: List[Wait] = []
_pinned: Set[WeakIdRef] = set()


def note_wait(what: str) -> None:
    """Python would wait for the device here."""
    _waits.append(Wait(what, _asking_line()))


def _asking_line() -> str:
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if path not in NOT_ASKING and not {"torch", "jaxtyping", "beartype"} & set(path.parts):
            if not path.name.startswith("<"):
                package = next((i for i, part in enumerate(path.parts) if part in ("hashpose_ns", "nerfstudio")), -2)
                return f"{'/'.join(path.parts[package:])}:{line} {frame.f_code.co_name}"
    return "nowhere"


class OnDevice(Tensor):
    """A tensor of the emulated GPU. torch takes it for one of the CPU, Python for one of the GPU."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor, requires_grad: bool = False) -> "OnDevice":
        self = Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=data.device,
            requires_grad=requires_grad,
        )
        self.data_on_cpu = data
        return self

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.data_on_cpu})"

    def __deepcopy__(self, memo: Dict[int, Any]) -> "OnDevice":
        with torch.no_grad():
            copied = OnDevice(self.data_on_cpu.clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        note_wait("saving")
        return self.data_on_cpu.detach().__reduce_ex__(protocol)

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:  # type: ignore[override]
        note_wait("tolist")
        return self.data_on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        tensors: List[Tensor] = []
        changed((args, kwargs), tensors.append)
        _check(name, func, args, tensors)
        inside = {id(each.data_on_cpu): each for each in tensors if isinstance(each, OnDevice)}
        plain_args, plain_kwargs = changed((args, kwargs), on_cpu)
        result = func(*plain_args, **plain_kwargs)

        def wrapped(each: Tensor) -> Tensor:
            known = inside.get(id(each))  # what an operation changed in place, and returns
            return known if known is not None else OnDevice(each)

        if name == "copy_" and not isinstance(args[0], OnDevice):
            return args[0]
        return changed(result, wrapped)


def changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments or results with their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(changed(each, change) for each in value)
    if type(value) is dict:
        return {key: changed(each, change) for key, each in value.items()}
    return value


def on_cpu(tensor: Tensor) -> Tensor:
    """What a tensor holds."""
    return tensor.data_on_cpu if isinstance(tensor, OnDevice) else tensor


def _check(name: str, func: Any, args: Any, tensors: List[Tensor]) -> None:
    """Refuses operations on two devices, and notes waits."""
    others = [each for each in tensors if not isinstance(each, OnDevice)]
    if name in INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(f"{name}: indices should be either on cpu or on the same device as the indexed tensor")
        indices = [each for each in args[1] if each is not None]
        if any(each.dtype == torch.bool for each in indices):
            number = name != "index" and args[2].numel() == 1  # becomes masked_fill
            if not number:
                note_wait(f"{name} by a mask")
        elif any(not isinstance(each, OnDevice) for each in indices):
            note_wait(f"{name} by indices on the CPU")
        others = [each for each in args[2:3] if isinstance(each, Tensor) and not isinstance(each, OnDevice)]
    elif name == "copy_" and others:
        if args[1].dim() or not isinstance(args[0], OnDevice):  # a number in place of a tensor becomes `fill_`
            note_wait("a copy from or to the CPU")
        return
    if name in SIZES_DEPEND_ON_NUMBERS + READS or (name == "repeat_interleave" and func._overloadname == "Tensor"):
        note_wait(name)
    for each in others:
        if each.dim():
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")


class _Move(torch.autograd.Function):
    """From one device to the other, with its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return OnDevice(tensor.detach()) if up else tensor.data_on_cpu.detach().clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad.data_on_cpu.clone() if ctx.up else OnDevice(grad.clone())), None  # type: ignore[attr-defined]


def _moved(tensor: Tensor, to_gpu: bool, non_blocking: bool, copied: bool) -> Tensor:
    if isinstance(tensor, OnDevice) == to_gpu:
        return tensor
    if not (to_gpu and non_blocking and WeakIdRef(tensor) in _pinned):
        note_wait("a copy to the GPU" if to_gpu else "a copy to the CPU")
    source = tensor.clone() if to_gpu and not copied else tensor
    return _Move.apply(source, to_gpu)


class EmulatedGPU(TorchFunctionMode):
    """Sends what is asked for on `cuda` to the emulated GPU; in this thread, while it is entered."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Optional[Dict] = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (Tensor.backward, torch.autograd.grad):
            with self:  # what the backward pass calls in Python is to be sent there as well
                if func is torch.autograd.grad:
                    return _run_backward(*args, accumulate=False, **kwargs)
                return _run_backward(*args, accumulate=True, **kwargs)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _converted(func, args, kwargs)
        if func is Tensor.pin_memory:
            if isinstance(args[0], OnDevice):
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")
            pinned = args[0].clone()
            _pinned.add(WeakIdRef(pinned, _pinned.discard))
            return pinned
        if func is Tensor.is_pinned:
            return WeakIdRef(args[0]) in _pinned
        if func in (Tensor.type_as, Tensor.is_shared):
            raise NotImplementedError(name)
        if name in MAKE_TENSORS_INSIDE:
            plain = changed((args, kwargs), on_cpu)
            made = func(*plain[0], **plain[1])
            return OnDevice(made.detach()) if isinstance(args[0], OnDevice) else made
        device = kwargs.get("device")
        if device is not None and any(isinstance(each, OnDevice) for each in args):
            if torch.device(device).type == "cpu":
                return OnDevice.data_on_cpu.__get__(func(*args, **{**kwargs, "device": None}))
            kwargs.pop("device")
        elif device is not None and torch.device(device).type == "cuda":
            generator = kwargs.get("generator")
            if generator is not None and not isinstance(generator, GPUGenerator):
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            requires_grad = kwargs.pop("requires_grad", False)
            made = func(*args, **{**kwargs, "device": "cpu"})
            if name in ("tensor", "as_tensor"):
                note_wait("a copy to the GPU")
            return OnDevice(made, requires_grad)
        return func(*args, **kwargs)


class GPUGenerator(torch.Generator):
    """Stands for one of the device."""


def _run_backward(
    outputs: Any,
    inputs: Any = None,
    grad_outputs: Any = None,
    retain_graph: Optional[bool] = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    accumulate: bool = True,
    gradient: Optional[Tensor] = None,
    **_: Any,
) -> Any:
    """`Tensor.backward` and `torch.autograd.grad`, which would run the backward pass with the emulation off."""
    from torch.autograd import _make_grads
    from torch.autograd.graph import _engine_run_backward

    def several(value: Any) -> tuple:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)

    outputs = several(outputs)
    given = several(grad_outputs if gradient is None else gradient)
    grads = _make_grads(outputs, given if given != (None,) else (None,) * len(outputs), is_grads_batched=False)
    retain = create_graph if retain_graph is None else retain_graph
    inputs = () if inputs is None else several(inputs)
    return _engine_run_backward(
        outputs, grads, retain, create_graph, inputs, allow_unused or accumulate, accumulate_grad=accumulate
    )


def _converted(func: Callable, args: Any, kwargs: Dict) -> Tensor:
    """`Tensor.to` and its kin: first to the device, then to the type."""
    tensor = args[0]
    if func is Tensor.cpu:
        device, dtype, non_blocking, copy = torch.device("cpu"), None, False, False
    elif func is Tensor.cuda:
        device, dtype, non_blocking, copy = GPU, None, kwargs.get("non_blocking", False), False
    else:
        arguments, copy = args[1:], kwargs.pop("copy", False)
        memory_format = kwargs.pop("memory_format", None)
        assert memory_format in (None, torch.preserve_format)
        if arguments and isinstance(arguments[0], Tensor):
            device, dtype = arguments[0].device, arguments[0].dtype
            non_blocking = kwargs.get("non_blocking", False)
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*arguments, **kwargs)
    before = tensor
    if device is not None and device.type in ("cpu", "cuda"):
        tensor = _moved(tensor, device.type == "cuda", non_blocking, copied=False)
    if dtype is not None and tensor.dtype != dtype:
        tensor = Tensor.to(tensor, dtype)
    return tensor.clone() if copy and tensor is before else tensor


def _in_place_of_triton(name: str) -> Callable:
    """A pass of the Triton backend, computed by eager torch."""

    def compute(self: TritonBackend, *args: Any) -> Any:
        return changed(getattr(EAGER, name)(*changed(args, on_cpu)), OnDevice)

    return compute


@contextlib.contextmanager
def waits() -> Iterator[List[Wait]]:
    """The waits inside of the block, in order."""
    begin = len(_waits)
    found: List[Wait] = []
    try:
        yield found
    finally:
        found.extend(_waits[begin:])


@pytest.fixture
def gpu() -> Iterator[EmulatedGPU]:
    """A machine with an emulated GPU, for one test."""
    with emulation() as emulated:
        yield emulated


@contextlib.contextmanager
def emulation() -> Iterator[EmulatedGPU]:
    """A machine with an emulated GPU, inside of the block."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _answer_as_a_gpu(monkeypatch)
        # A parameter that moves becomes another one: torch would put an `OnDevice` into the old one without its type.
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _waits.clear()
        try:
            with EmulatedGPU() as emulated:
                yield emulated
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)


def _answer_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has torch say what it says where there is a GPU."""
    answers: Dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "an emulated GPU",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "mem_get_info": (1 << 33, 1 << 34),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "manual_seed_all": None,
        "manual_seed": None,
        "empty_cache": None,
        "get_rng_state": torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": None,
        "_lazy_init": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: note_wait("synchronize"))
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # by torch's version
        monkeypatch.setattr(torch.optim.Optimizer, check, lambda self: None, raising=False)
    group = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def grouped(lists: Any, *args: Any, **kwargs: Any) -> Any:
        """By the device that Python knows."""
        groups = group(lists, *args, **kwargs)
        return {(value[0][0][0].device, key[1]): value for key, value in groups.items()}

    monkeypatch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped))
    monkeypatch.setattr(TritonBackend, "unsupported", lambda *_: None)
    for name in ("forward", "backward"):
        monkeypatch.setattr(TritonBackend, name, _in_place_of_triton(name))
