"""Which precision `auto` is, by what processors say of themselves."""

import pytest
import torch

from pofx.base import machine

CPU = torch.device("cpu")
AVX2 = "fpu sse4_2 avx avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512_vnni"
BF16 = f"{AVX512} avx512_bf16"
AMX = f"{BF16} amx_bf16 avx512_fp16 amx_tile amx_int8"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16 i8mm\n"


def info(flags: str) -> str:
    """As Linux writes it, of two cores."""
    one = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\nvmx flags\t: vnmi amx_bf16\nbugs\t\t:\n\n"
    return 2 * one


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    for key in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(machine, "CPUINFO", str(tmp_path / "cpuinfo"))
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "want"),
    [(info(AVX2), "fp32"), (info(AVX512), "fp32"), (info(BF16), "bf16"), (info(AMX), "bf16"), (ARM, "fp32"),
     (info(f"{AVX512} avx512_bf16x"), "fp32"), (None, "fp32")],
    ids=["avx2", "avx512", "bf16", "amx", "arm", "another flag", "no file"],
)  # fmt: skip
def test_auto_follows_the_flags_of_the_processor(cpuinfo, text, want):
    if text is not None:
        cpuinfo.write_text(text)
    assert machine.precision("auto", CPU) == want
    assert [machine.precision(asked, CPU) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("limits", "want"),
    [({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "fp32"), ({"ONEDNN_MAX_CPU_ISA": "avx512_core"}, "fp32"),
     ({"DNNL_MAX_CPU_ISA": "AVX2"}, "fp32"), ({"ATEN_CPU_CAPABILITY": "avx2"}, "fp32"),
     ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bf16"), ({"ONEDNN_MAX_CPU_ISA": "ALL"}, "bf16"),
     ({"ATEN_CPU_CAPABILITY": "avx512"}, "bf16")],
    ids=str,
)  # fmt: skip
def test_a_machine_that_is_held_to_less_acts_as_a_smaller_one(cpuinfo, monkeypatch, limits, want):
    cpuinfo.write_text(info(AMX))
    for key, value in limits.items():
        monkeypatch.setenv(key, value)
    assert machine.precision("auto", CPU) == want


@pytest.mark.parametrize(("native", "want"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_emulates_bf16_computes_in_fp32(cpuinfo, monkeypatch, native, want):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert machine.precision("auto", torch.device("cuda")) == want


def test_products_are_computed_in_the_precision_that_is_named():
    with machine.autocast(CPU, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with machine.autocast(CPU, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
