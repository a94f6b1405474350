"""Choosing a backend: by device, by name, by variable; and a compiled module that is missing or broken."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

import vaefast
from vaefast import _backends, _extension
from vaefast._backends import BackendError, use_backend
from vaefast.ops._define import TABLE


@pytest.fixture(autouse=True)
def automatic():
    """Leave no choice behind."""
    with use_backend("auto"):
        yield


def _z():
    return vaefast.standard_normal(8, seed=0)


def test_use_backend_nests():
    assert _backends.asked() is None
    with use_backend("reference"):
        assert _backends.asked() == "reference"
        with use_backend("cuda"):
            assert _backends.asked() == "cuda"
            with use_backend("auto"):
                assert _backends.asked() is None
            assert _backends.asked() == "cuda"
        assert _backends.asked() == "reference"
        assert _backends.choose("standard_normal", "cpu") == "reference"
    assert _backends.asked() is None


def test_use_backend_for_several_blocks():
    reference = use_backend("reference")
    for _ in range(2):
        with reference:
            with reference:
                assert _backends.asked() == "reference"
            assert _backends.asked() == "reference"
        assert _backends.asked() is None


def test_use_backend_is_undone_by_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert _backends.asked() is None


def test_use_backend_as_a_function():
    use_backend("reference")
    assert _backends.choose("rsample_forward", "cpu") == "reference"
    use_backend("auto")
    assert _backends.asked() is None


def test_a_choice_takes_effect_on_ops_that_have_run():
    """What was chosen once is remembered, until another backend is asked for."""
    _z()
    if not torch.cuda.is_available():
        with use_backend("cuda"), pytest.raises(BackendError):
            _z()
    _z()


@pytest.mark.parametrize("name", ["gpu", "", None, 3])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="must be one of 'cuda', 'triton', 'cpu', 'reference' or 'auto', got"):
        use_backend(name)
    assert _backends.asked() is None


@pytest.mark.parametrize("op", sorted(TABLE))
def test_asked_for_by_name_works_or_raises_with_the_reason(op):
    density = TABLE[op].density
    for name in _backends.NAMES:
        for device in ("cpu", "meta"):
            reason = _backends.why_not(name, density, device)
            with use_backend(name):
                if reason is None:
                    assert _backends.choose(density, device) == name
                else:
                    with pytest.raises(BackendError) as raised:
                        _backends.choose(density, device)
                    assert all(word in str(raised.value) for word in (repr(name), density, device, reason))


def test_cuda_kernels_refuse_cpu_tensors():
    mu = torch.zeros(2, 3, requires_grad=True)
    with use_backend("cuda"), pytest.raises(BackendError, match="'cuda' was asked for but cannot run rsample_forward"):
        vaefast.rsample(mu, mu)


def test_automatic_is_the_first_that_can(monkeypatch):
    """The order of preference, with backends that say so of themselves."""

    class Fake:
        def __init__(self, reason):
            self.reason = reason

        def why_not(self, op, device_type):
            return self.reason

    def chosen(device, **reasons):
        monkeypatch.setattr(_backends, "module", lambda name: Fake(reasons.get(name)))
        return _backends.choose("rsample_forward", device)

    assert chosen("cuda") == "cuda"
    assert chosen("cuda", cuda="not built") == "triton"
    assert chosen("cuda", cuda="not built", triton="not installed") == "reference"
    assert chosen("cpu") == "cpu"
    assert chosen("cpu", cpu="not built") == "reference"
    assert chosen("xpu") == "reference"


_PRINT_CHOICE = "import vaefast; from vaefast import _backends; print(_backends.choose('standard_normal', 'cpu'))"


def test_variable(python):
    assert python(_PRINT_CHOICE, VAEFAST_BACKEND="reference")[:2] == (0, "reference\n")
    automatic = _backends.choose("standard_normal", "cpu")
    for value in ("", "auto"):
        assert python(_PRINT_CHOICE, VAEFAST_BACKEND=value)[:2] == (0, f"{automatic}\n")


def test_variable_with_an_unknown_name(python):
    status, _, stderr = python(_PRINT_CHOICE, VAEFAST_BACKEND="fast")
    assert status == 1
    assert "ValueError: VAEFAST_BACKEND must be one of" in stderr
    assert "'fast'" in stderr


def test_variable_for_a_backend_that_cannot_run(python):
    status, _, stderr = python("import vaefast; vaefast.standard_normal(3, seed=0)", VAEFAST_BACKEND="cuda")
    assert status == 1
    assert "BackendError: backend 'cuda' was asked for but cannot run standard_normal on cpu tensors" in stderr


def test_use_backend_rules_over_the_variable(python):
    source = f"import vaefast\nvaefast.use_backend('reference')\n{_PRINT_CHOICE}"
    assert python(source, VAEFAST_BACKEND="cuda")[:2] == (0, "reference\n")


def test_importing_loads_and_prints_nothing(python):
    """No compiled module, no triton, no word, before the first op runs."""
    source = "import sys, vaefast; print(sorted(m for m in ('vaefast._C', 'triton') if m in sys.modules))"
    assert python(source) == (0, "[]\n", "")


# The compiled module


@pytest.fixture
def reload(monkeypatch):
    """Load the compiled module anew, in place of the one that this process has."""

    def forget():
        _extension._load.cache_clear()
        _backends.ready.clear()

    monkeypatch.delattr(vaefast, "_C", raising=False)
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


class _Finder:
    """Answers for vaefast._C before the real finders do."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "vaefast._C":
            raise self.error
        return None


def _answer_with(monkeypatch, error):
    monkeypatch.delitem(sys.modules, "vaefast._C", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Finder(error), *sys.meta_path])


def test_not_built_is_silent(reload):
    _answer_with(reload, ModuleNotFoundError("No module named 'vaefast._C'", name="vaefast._C"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = _z()
    assert _extension.module() is None
    assert "not built" in _extension.reason()
    assert _backends.choose("standard_normal", "cpu") == "reference"
    with use_backend("reference"):
        assert torch.equal(z, _z())


def test_built_but_broken_warns_once_and_falls_back(reload):
    _answer_with(reload, ImportError("libgomp.so.1: cannot open shared object file"))
    with pytest.warns(_extension.LoadWarning, match=r"libgomp\.so\.1"):
        z = _z()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vaefast.rsample_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    assert "libgomp" in _extension.reason()
    with use_backend("reference"):
        assert torch.equal(z, _z())


def test_broken_and_asked_for_raises_with_the_reason(reload):
    _answer_with(reload, ImportError("undefined symbol: omp_get_thread_num"))
    with (
        warnings.catch_warnings(record=True),
        use_backend("cpu"),
        pytest.raises(BackendError, match="undefined symbol: omp_get_thread_num"),
    ):
        _z()


def test_errors_inside_the_module_are_not_swallowed(reload):
    """A module that is there and fails on something else it imports has not merely 'not been built'."""
    _answer_with(reload, ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere"))
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        _z()
