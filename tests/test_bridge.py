"""In which order kernels and torch run on a GPU, and how tensors reach a kernel: by mocks, where
there is no GPU."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import taichi as ti
import torch

from tem_taichi import bridge, timing
from tem_taichi.bridge import launch
from tem_taichi.device import init


class Stream:
    """Of a device that writes down what waits for what."""

    def __init__(self, number: int, done: list[str]) -> None:
        self.cuda_stream, self.done = number, done

    def wait_stream(self, other: "Stream") -> None:
        self.done.append(f"{self.cuda_stream} waits for {other.cuda_stream}")


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What a GPU is asked for, with torch's default stream and the current one the null stream."""
    done: list[str] = []
    place(monkeypatch, Stream(0, done), None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: done.append("torch waits"))
    monkeypatch.setattr(ti, "sync", lambda: done.append("Taichi waits"))
    monkeypatch.delenv("TEM_TAICHI_SYNCHRONIZE", raising=False)
    return done


def place(monkeypatch, default: Stream, current: Stream | None) -> None:
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current or default)


def on_gpu(index: int = 0) -> MagicMock:
    tensor = MagicMock(spec=torch.Tensor)
    tensor.device = torch.device("cuda", index)
    return tensor


def test_on_the_null_stream_nothing_waits(done):
    launch(lambda *_: done.append("kernel"), on_gpu(), 3, on_gpu())
    assert done == ["kernel"]


def test_another_stream_and_taichis_wait_for_each_other_on_the_device(done, monkeypatch):
    place(monkeypatch, Stream(0, done), Stream(7, done))
    launch(lambda *_: done.append("kernel"), on_gpu())
    assert done == ["0 waits for 7", "kernel", "7 waits for 0"]


def test_where_torchs_default_is_not_the_null_stream_the_processor_waits(done, monkeypatch):
    place(monkeypatch, Stream(2, done), None)
    launch(lambda *_: done.append("kernel"), on_gpu())
    assert done == ["torch waits", "kernel", "Taichi waits"]


def test_the_environment_has_the_processor_wait(done, monkeypatch):
    monkeypatch.setenv("TEM_TAICHI_SYNCHRONIZE", "1")
    launch(lambda *_: done.append("kernel"), on_gpu())
    assert done == ["torch waits", "kernel", "Taichi waits"]


def test_a_tensor_elsewhere_is_refused(done):
    with pytest.raises(ValueError, match="tensors on cpu, cuda:0: must be on one device"):
        launch(lambda *_: done.append("kernel"), on_gpu(), torch.zeros(1))
    assert done == []


def test_on_a_cpu_there_are_no_streams(done):
    launch(lambda *_: done.append("kernel"), torch.zeros(1), 2)
    launch(lambda *_: done.append("kernel"), 2)
    assert done == ["kernel", "kernel"]


def test_stages_are_timed_without_waiting_for_the_device(monkeypatch):
    """Only who asks for the seconds waits."""
    done = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            done.append(f"event on {stream}")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(timing, "current", lambda: SimpleNamespace(
        torch_device=torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    timer = timing.Timer()
    for _ in range(2):
        with timer("potential"):
            done.append("work")
    assert done == ["event on stream of cuda:0", "work", "event on stream of cuda:0"] * 2
    assert timer.seconds == {"potential": 0.5} == timer.seconds
    assert done[6:] == ["wait", "wait"]


@ti.kernel
def double_it(values: ti.types.ndarray(ndim=2)):
    for i, j in values:
        values[i, j] *= 2.0


GPU = pytest.param("gpu", marks=[
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])


@pytest.mark.parametrize("arch", ["cpu", GPU])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int32])
def test_a_kernel_writes_where_torch_reads(arch, kind):
    """No copies: a view of a view, at the address of the whole."""
    place = init(arch).torch_device
    whole = torch.arange(24, device=place).to(kind).reshape(4, 6)
    part, address = whole[1:3], whole.data_ptr()
    seen = []
    launch(lambda values: (seen.append(values.data_ptr()), double_it(values)), part)
    assert seen == [address + 6 * whole.element_size()]
    expected = torch.arange(24).reshape(4, 6)
    expected[1:3] *= 2
    assert torch.equal(whole.cpu(), expected.to(kind))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("aside", [False, True])
def test_kernels_come_in_their_turn(aside):
    """Behind work of torch's that takes long, and before what reads their result, on the default
    stream or another."""
    place = init("gpu").torch_device
    with torch.cuda.stream(torch.cuda.Stream(place) if aside else torch.cuda.default_stream(place)):
        for _ in range(5):
            slow = torch.eye(6000, device=place)
            for _ in range(20):
                slow = slow @ slow
            launch(double_it, slow)
            assert float((slow + 0).sum()) == 12000.0


def test_what_would_have_to_be_copied_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        launch(double_it, torch.zeros(4, 6).T)


def test_a_differentiable_stage_writes_into_what_it_is_given():
    def stage(x, out):
        double_it(out.add_(x))

    out, x = torch.zeros(2, 3), torch.ones(2, 3)
    result = bridge.differentiable(stage, out, x)
    assert result.data_ptr() == out.data_ptr()
    assert torch.equal(out, torch.full((2, 3), 2.0))
