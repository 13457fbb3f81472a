"""The ring sends each block on before it attends to it, and waits for the next one after: transfers run under the kernels."""

from itertools import groupby

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import dit_usp.attention
from dit_usp import ParallelConfig, collectives, init_mesh, usp_attention
from dit_usp.attention import ring
from dit_usp.bench import alone, look

RANKS = 3
ORDER = ["send", "attend", "wait"] * (RANKS - 1) + ["attend"]
DEALT = ["send", "wait"]  # the causal order deals chunks first, and brings the result back


def lone(device):
    """This process as the first of three ranks, the others copies of it."""
    alone.start(RANKS)
    if device == "cuda":
        torch.cuda.init()  # else DeviceMesh deals the ranks to this machine's GPUs, and refuses three on two
    return init_mesh(ParallelConfig(1, RANKS), device)


@pytest.fixture
def mesh():
    return lone("cpu")


def tokens(length=6, size=16, **options):
    return [torch.randn(1, 2, length, size, **options) for _ in range(3)]


@pytest.mark.parametrize("is_causal", [False, True])
def test_eager_order(mesh, monkeypatch, is_causal):
    met = []

    def noted(word, function):
        return lambda *args, **kwargs: (met.append(word), function(*args, **kwargs))[1]

    monkeypatch.setattr(alone.Alone, "exchange", noted("send", alone.Alone.exchange))
    wait = noted("wait", collectives.wait)
    monkeypatch.setattr(collectives, "wait", wait)
    monkeypatch.setattr(ring, "wait", wait)
    monkeypatch.setattr(dit_usp.attention, "run", noted("attend", dit_usp.attention.run))
    with torch.no_grad():
        usp_attention(*tokens(), mesh=mesh, lengths=(6,) * RANKS, is_causal=is_causal)
    assert met == (DEALT + ORDER + DEALT if is_causal else ORDER)


@pytest.mark.parametrize("is_causal", [False, True])
def test_compiled_order(mesh, is_causal):
    torch._dynamo.reset()
    met = []
    words = {"all_to_all_single": "send", "wait_tensor": "wait", "_scaled_dot_product_flash_attention_for_cpu": "attend"}

    def look(graph, inputs):
        met.extend(word for node in graph.graph.nodes if (word := words.get(str(node.target).split(".")[-2:][0])))
        return make_boxed_func(graph.forward)

    attention = torch.compile(usp_attention, fullgraph=True, backend=aot_autograd(fw_compiler=look))
    with torch.no_grad():
        attention(*tokens(), mesh=mesh, lengths=(6,) * RANKS, is_causal=is_causal)
    assert met == (DEALT + ORDER + DEALT if is_causal else ORDER)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the order in a GPU's own trace")
def test_order_on_the_gpu():
    mesh, inputs = lone("cuda"), tokens(4096, 64, device="cuda", dtype=torch.bfloat16)

    def attend():
        with torch.no_grad():
            usp_attention(*inputs, mesh=mesh, lengths=(4096,) * RANKS)

    attend()
    kinds = [look._kind(name) for name, start, _ in sorted(look.trace(attend), key=lambda span: span[1])]
    met = [kind for kind, _ in groupby(kind for kind in kinds if kind != "other")]
    assert met == ["communication", "attention"] * (RANKS - 1)  # the last block comes right after the one before
