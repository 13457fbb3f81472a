"""Pipelines whose transformer's calls are recorded and replayed. The recording is made of Python here, as in tests/test_graph.py."""

import pytest
from calls import arguments, array, error, expected, shared
from test_graph import record, watch

from dit_usp.graph import CallGraph, graph_of

STEPS = {"num_inference_steps": 6}


def replayed(name, path, degrees):
    """The second of two calls on a rank, what became of the transformer's calls; then the ranks disagree."""
    with shared(name, path, degrees) as pipe:
        transformer, mesh = pipe.transformer, pipe.mesh
        transformer._compiled_call_impl = CallGraph(transformer, [mesh.sequence, mesh.cfg], True, record, watch())
        for _ in range(2):
            output = pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}))
        report = graph_of(transformer).report()
        made = array(next(iter(vars(output).values())))
        weight = next((pipe.text_encoder_2 if name == "FluxPipeline" else pipe.text_encoder).parameters())
        kept = weight.clone()
        weight.data += mesh.sequence.rank() + mesh.cfg.rank()
        try:
            with pytest.raises(ValueError, match="different weights"):
                pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}))
        finally:
            weight.data.copy_(kept)  # later tests use these weights
    return made, report


@pytest.mark.parametrize(("name", "degrees"), [("FluxPipeline", (2, 1)), ("PixArtSigmaPipeline", (1, 1, 2))])
def test_replays_make_the_same_picture(ranks, folder, name, degrees):
    (out, report), (nothing, _) = ranks(2, replayed, name, folder(name), degrees)
    assert error(out, expected(name, folder(name), **STEPS)) <= 1e-5
    assert nothing is None
    assert report == ["replayed"]
