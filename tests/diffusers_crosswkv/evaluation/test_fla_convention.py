"""How flash-linear-attention's autotuner is kept from taking a whole run; without the library."""

import subprocess
import sys
import time

import pytest
import torch

from diffusers_crosswkv.evaluation import fla_convention

CPU = torch.device("cpu")


@pytest.fixture
def tune(monkeypatch):
    """Tuning within a second beside a process that sleeps; `call_once` is what is timed."""
    monkeypatch.setattr(fla_convention, "TUNING_SECONDS", 1.0)
    started = []

    def call(seconds, call_once):
        def start(*_):
            process = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
            started.append(process)
            return [process]

        monkeypatch.setattr(fla_convention, "start_compiling", start)
        monkeypatch.setattr(fla_convention, "call_once", call_once)
        fla_convention.tune(CPU, (5,), 64, torch.bfloat16)

    fla_convention.choose_in_time.cache_clear()
    yield call, started
    fla_convention.choose_in_time.cache_clear()


def test_compiling_has_an_end(tune):
    call, started = tune
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"not done after 1 s; call again to go on"):
            call(600, lambda *_: None)
    assert time.monotonic() - start < 60
    (process,) = started  # the second call knows of the first
    assert process.returncode is not None


def test_timing_has_an_end(tune, monkeypatch):
    autotuner = pytest.importorskip("triton.runtime.autotuner", reason="triton is not installed").Autotuner

    def time_forever(*_):
        while True:
            autotuner._bench(None, config=None)

    call, _ = tune
    monkeypatch.setattr(autotuner, "_bench", lambda *_, **__: [1.0])
    bench = autotuner._bench
    with pytest.raises(TimeoutError):
        call(0, time_forever)
    assert autotuner._bench is bench


def test_in_time(tune):
    call, started = tune
    chosen = []
    call(0, lambda *arguments: chosen.append(arguments))
    call(0, lambda *arguments: chosen.append(arguments))
    assert chosen == [(CPU, (5,), 64, torch.bfloat16)]
    assert len(started) == 1
